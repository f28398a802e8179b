"""People, their roles, and the codes that their authenticator apps show."""

from __future__ import annotations

from adapterhub.accounts.models import Membership, Project, User


def member(name: str, project: Project | None, role: str = "") -> User:
    user = User.objects.create_user(name, password=f"{name}-long-password")
    if project:
        Membership.objects.create(project=project, user=user, role=role)
    return user
