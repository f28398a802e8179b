"""People, their roles, and the codes that their authenticator apps show."""

from __future__ import annotations

import base64
import time

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from adapterhub.accounts.models import Membership, Project, User


def member(name: str, project: Project | None, role: str = "") -> User:
    user = User.objects.create_user(name, f"{name}@example.org", password=f"{name}-long-password")
    if project:
        Membership.objects.create(project=project, user=user, role=role)
    return user


def app_code(secret: str, ahead: int = 0) -> str:
    """Return the code that an authenticator app shows `ahead` steps from now."""
    app = TOTP(base64.b32decode(secret), 6, SHA1(), 30, enforce_key_length=False)  # noqa: S303
    return app.generate(int(time.time()) + 30 * ahead).decode()
