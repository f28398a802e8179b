"""Secrets that the database keeps but may not tell: sealed with a key of the installation, one for each purpose."""

from __future__ import annotations

import base64

from cryptography.fernet import Fernet
from django.utils.crypto import salted_hmac


def box(purpose: str) -> Fernet:
    """A copy of the database opens nothing that was sealed; another ADAPTERHUB_SECRET_KEY makes it unreadable."""
    key = salted_hmac(f"adapterhub.{purpose}", b"", algorithm="sha256").digest()
    return Fernet(base64.urlsafe_b64encode(key))
