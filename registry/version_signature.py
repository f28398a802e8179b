"""Signature of a version: it states that these bytes passed the check and belong to this version.

Ed25519 over the canonical JSON (RFC 8785) of the version's identity; anyone who has the public key can verify it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from adapterhub.artifacts import ArtifactError
from adapterhub.core.signed_json import signed_with

DOMAIN = b"adapterhub.version.v1\n"


def sign(content: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """Return a JSON document: `signed`, the content's canonical text, and `signature`, the key's over it, in hex."""
    return signed_with(key, DOMAIN, content).decode()


def require_signed(document: str, content: dict[str, Any], trusted: Iterable[Ed25519PublicKey]) -> None:
    """Verify that a trusted key signed exactly this content.

    `document` is the stored result of `sign`, "" if there is none. Raises ArtifactError if not, also for a document
    that is missing or cannot be read.
    """
    if not document:
        raise ArtifactError("It has no signature: run `manage.py sign_versions` to check and sign it.")
    try:
        parsed = json.loads(document)
        text, signature = parsed["signed"].encode(), bytes.fromhex(parsed["signature"])
        signed_content = json.loads(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ArtifactError("Its signature cannot be read: the row was changed.") from None
    if signed_content != content:
        raise ArtifactError("Its signature belongs to other content: the row was changed.")
    if not any(verifies(key, signature, DOMAIN + text) for key in trusted):
        raise ArtifactError("Its signature was made with a key that this installation does not trust.")


def verifies(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Return True if the key made this signature of the message."""
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
