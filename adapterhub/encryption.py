"""Encryption of secrets that the database stores: a key for each purpose, derived from the installation's key."""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from django.utils.crypto import salted_hmac

# The HPKE suite with which others encrypt to our public key.
SEALED_FOR_US = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def box(purpose: str) -> Fernet:
    """Return the cipher of a purpose, with a key derived from ADAPTERHUB_SECRET_KEY, which is not in the database.

    A stolen copy of the database cannot be decrypted; after a change of the key, neither can the original.
    """
    return Fernet(base64.urlsafe_b64encode(key_for(purpose)))


def private_key(purpose: str) -> X25519PrivateKey:
    """Return the private key of a purpose, which decrypts what other processes encrypt with its public half."""
    return X25519PrivateKey.from_private_bytes(key_for(purpose))


def key_for(purpose: str) -> bytes:
    """Return the 32 bytes of a purpose's key, derived from Django's secret key."""
    return salted_hmac(f"adapterhub.{purpose}", b"", algorithm="sha256").digest()
