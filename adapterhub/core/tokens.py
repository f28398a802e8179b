"""The text form of an API token, `ah_<id>_<secret>`: generating, parsing and hashing it. Pure."""

from __future__ import annotations

import hashlib
import secrets
import string

ID_LETTERS = string.ascii_lowercase + string.digits
ID_LENGTH = 12


def new_id_and_secret() -> tuple[str, str]:
    """Return a new token's id, which is public, and its secret of 256 random bits."""
    return "".join(secrets.choice(ID_LETTERS) for _ in range(ID_LENGTH)), secrets.token_urlsafe(32)


def text_of(token_id: str, secret: str) -> str:
    """Return the text of a token, which callers send: `ah_<id>_<secret>`."""
    return f"ah_{token_id}_{secret}"


def id_and_secret_of(text: str) -> tuple[str, str] | None:
    """Return the id and the secret in a token's text; None if the text does not have three parts."""
    parts = text.split("_", 2)
    return (parts[1], parts[2]) if len(parts) == 3 else None


def secret_hash(secret: str) -> str:
    """Return the secret's sha256 in hexadecimal. A secret of 256 random bits needs no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()
