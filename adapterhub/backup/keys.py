"""The installation's keys in a file that only a passphrase opens, and back to where this installation reads them."""

from __future__ import annotations

import base64
import json
import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from django.conf import settings

from adapterhub import environment as env
from adapterhub.audit.installation_key import kept_key
from adapterhub.backup.errors import BackupError

LEAST_CHARACTERS = 16
# The cost of one guess: 64 MiB and a fifth of a second.
SCRYPT = {"n": 2**16, "r": 8, "p": 1}


def current() -> dict[str, str]:
    """Return the keys that are in use: Django's secret key, the Ed25519 key, and the secret shared with routers."""
    keys = {"secret_key": settings.SECRET_KEY, "audit_key": settings.AUDIT_KEY or kept_key(settings.AUDIT_KEY_FILE)}
    if settings.ROUTER_SECRET_FILE.exists():
        keys["router_secret"] = settings.ROUTER_SECRET_FILE.read_text()
    return keys


def sealed(keys: dict[str, str], passphrase: str) -> bytes:
    """Return the keys, encrypted. Raises BackupError for a short passphrase."""
    if len(passphrase) < LEAST_CHARACTERS:
        raise BackupError(f"The passphrase has fewer than {LEAST_CHARACTERS} characters: choose a longer one.")
    salt = secrets.token_bytes(16)
    text = box(passphrase, salt).encrypt(json.dumps(keys).encode())
    return json.dumps({"salt": salt.hex(), "keys": text.decode()}).encode()


def opened(data: bytes, passphrase: str) -> dict[str, str]:
    """Return the keys that `sealed` encrypted. Raises BackupError for another passphrase."""
    stored = json.loads(data)
    try:
        text = box(passphrase, bytes.fromhex(stored["salt"])).decrypt(stored["keys"].encode())
    except InvalidToken as error:
        raise BackupError("The passphrase is not the one that the backup was made with.") from error
    return {str(name): str(key) for name, key in json.loads(text).items()}


def box(passphrase: str, salt: bytes) -> Fernet:
    """Return the cipher of a passphrase."""
    key = Scrypt(salt=salt, length=32, **SCRYPT).derive(passphrase.encode())
    return Fernet(base64.urlsafe_b64encode(key))


def put_back(keys: dict[str, str]) -> None:
    """Write the keys into the files that this installation reads them from.

    Raises BackupError for a key that a variable of the environment sets to another value: nothing is written then.
    """
    for name, setting in (("secret_key", "ADAPTERHUB_SECRET_KEY"), ("audit_key", "ADAPTERHUB_AUDIT_KEY")):
        if env.read(setting) and env.read(setting).strip() != keys[name].strip():
            raise BackupError(
                f"{setting} is not the key of the backup, which its data need: set it to that, or unset it."
            )
    if not env.read("ADAPTERHUB_SECRET_KEY"):
        write(settings.HOME / "secret-key", keys["secret_key"])
    if not settings.AUDIT_KEY:
        write(settings.AUDIT_KEY_FILE, keys["audit_key"])
    if "router_secret" in keys and not is_same(settings.ROUTER_SECRET_FILE, keys["router_secret"]):
        write(settings.ROUTER_SECRET_FILE, keys["router_secret"])


def is_same(path: Path, text: str) -> bool:
    """Return True if the file holds the text, as where a read-only secret of the platform is mounted."""
    return path.exists() and path.read_text() == text


def write(path: Path, text: str) -> None:
    """Replace the file in one step, readable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    scratch.touch(mode=0o600)
    scratch.write_text(text)
    scratch.replace(path)
