"""Secrets that the database keeps but may not tell: sealed with a key of the installation, one for each purpose."""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from django.utils.crypto import salted_hmac

# What others seal to our public key.
SEALED_FOR_US = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def box(purpose: str) -> Fernet:
    """A copy of the database opens nothing that was sealed; another ADAPTERHUB_SECRET_KEY makes it unreadable."""
    return Fernet(base64.urlsafe_b64encode(key_for(purpose)))


def private_key(purpose: str) -> X25519PrivateKey:
    """Opens what was sealed with its public half, by processes that may not read it again."""
    return X25519PrivateKey.from_private_bytes(key_for(purpose))


def key_for(purpose: str) -> bytes:
    return salted_hmac(f"adapterhub.{purpose}", b"", algorithm="sha256").digest()
