"""API keys of engines, sealed by the control plane for the routers with a secret that both hold in a file.

The table that carries them lies in Valkey and on the routers' disks, where they must not be read.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import os
import secrets
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken


def kept_secret(file: Path) -> str:
    """Return the secret in the file; if the file is missing, create it with a new secret that only its owner can read.

    Raises ValueError for an empty file.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError), open(file, "x", opener=for_owner) as stream:
        stream.write(secrets.token_urlsafe(32))
    if text := file.read_text().strip():
        return text
    raise ValueError(f"{file} is empty: write a secret into it, or remove it.")


def for_owner(path: str, flags: int) -> int:
    """Open the file and return its descriptor, as `opener` of `open`; a new file is readable by its owner only."""
    return os.open(path, flags, 0o600)


@functools.cache
def cipher(secret: str) -> Fernet:
    """Return the cipher whose key is derived from the secret."""
    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(f"engine keys {secret}".encode()).digest()))


def sealed(key: str, secret: str) -> str:
    """Return the engine's API key, encrypted with the secret."""
    return cipher(secret).encrypt(key.encode()).decode()


@functools.lru_cache(maxsize=4096)
def opened(key: str, secret: str) -> str | None:
    """Decrypt a sealed API key; return None if it was sealed with another secret."""
    try:
        return cipher(secret).decrypt(key.encode()).decode()
    except InvalidToken:
        return None
