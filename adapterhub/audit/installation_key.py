"""The installation's Ed25519 key, which signs checkpoints and versions and never leaves the server."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from adapterhub.core.signed_json import signed_with

PEM_END = "-----END PUBLIC KEY-----"


def signing_key() -> Ed25519PrivateKey:
    """Return the key of ADAPTERHUB_AUDIT_KEY, else the one in the data folder, generated at the first call.

    Raises ImproperlyConfigured when it is no Ed25519 key in PEM.
    """
    text = settings.AUDIT_KEY or kept_key(settings.AUDIT_KEY_FILE)
    try:
        key = load_pem_private_key(text.encode(), password=None)
    except ValueError as error:
        raise ImproperlyConfigured(
            "ADAPTERHUB_AUDIT_KEY is not a private key in PEM format: set it to an Ed25519 key."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ImproperlyConfigured("ADAPTERHUB_AUDIT_KEY is not an Ed25519 key: set it to one, or unset it.")
    return key


def kept_key(path: Path) -> str:
    """Return the key file's text; if it is missing, a new key is generated, readable by its owner only.

    If two processes generate one at the same time, both return the same.
    """
    if not path.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent) as scratch:
            scratch.write(pem)
            scratch.flush()
            link_once(scratch.name, path)
    return path.read_text()


def link_once(source: str, target: Path) -> None:
    """Make `target` a hard link to the file `source`; no effect if `target` exists, since another process was first."""
    try:
        os.link(source, target)
    except FileExistsError:
        return


def public_key_pem() -> bytes:
    """Return the public key in PEM, with which outsiders verify signatures.

    Raises ImproperlyConfigured if the installation's key is not Ed25519 in PEM.
    """
    return signing_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def trusted_keys() -> list[Ed25519PublicKey]:
    """Return the current public key and those of ADAPTERHUB_FORMER_KEYS, whose signatures stay valid.

    Raises ImproperlyConfigured if the current key or a former one is not Ed25519 in PEM.
    """
    public_keys: list[Ed25519PublicKey] = [signing_key().public_key()]
    for block in settings.FORMER_KEYS.split(PEM_END)[:-1]:
        public_keys.append(former_key(block + PEM_END))
    return public_keys


def former_key(pem: str) -> Ed25519PublicKey:
    """Parse a former public key. Raises ImproperlyConfigured unless it is Ed25519 in PEM."""
    try:
        key = load_pem_public_key(pem.strip().encode())
    except ValueError as error:
        raise ImproperlyConfigured(
            "ADAPTERHUB_FORMER_KEYS has an entry that is not a public key in PEM format: remove it."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ImproperlyConfigured("ADAPTERHUB_FORMER_KEYS has a key that is not Ed25519: remove it.")
    return key


def signed(domain: bytes, content: dict[str, Any]) -> bytes:
    """Return the content as a signed JSON document, in bytes: an object of `signed` and `signature`.

    `signed` is the canonical JSON as text, and `signature` that of the installation's key, in hexadecimal. It covers
    `domain` and the text, so that it cannot be used for another kind of document. Raises ImproperlyConfigured if the
    key is not Ed25519 in PEM.
    """
    return signed_with(signing_key(), domain, content)
