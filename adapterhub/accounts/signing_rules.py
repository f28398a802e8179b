"""Rules of signatures: who may sign, who counts as an author, and what a signature means."""

from __future__ import annotations

from collections.abc import Iterable

from django.db import models

from adapterhub.accounts.models import Project, User
from adapterhub.core.actor import Actor
from adapterhub.core.errors import NotAllowed
from adapterhub.core.tenancy import ROLE_SCOPES


class Meaning(models.TextChoices):
    """The meaning of a signature (21 CFR 11.50): the signer's part in the change."""

    AUTHORED = "authored"
    REVIEWED = "reviewed"
    APPROVED = "approved"


def require_role_for(scope: str, project: Project, by: Actor) -> User:
    """Return the acting person. Raises NotAllowed for tokens, and for people whose roles do not grant the scope."""
    if by.user is None or by.token_id or by.method in ("token", "system"):
        raise NotAllowed("Only a person who is signed in can do this: tokens cannot.", code="token_cannot_approve")
    roles = project.memberships.filter(user=by.user).values_list("role", flat=True)
    if not by.user.is_active or not any(scope in ROLE_SCOPES[role] for role in roles):
        raise NotAllowed(f"This needs a role with '{scope}' in project {project.slug!r}.", code="scope_missing")
    return by.user


def require_another(user: User, authors: Iterable[User | None]) -> None:
    """Check that the user is no author, nor shares an author's mail address. Raises NotAllowed."""
    known = [author for author in authors if author]
    emails = {author.email.casefold() for author in known if author.email}
    if user in known or user.email.casefold() in emails:
        raise NotAllowed("An author cannot approve their own change: ask somebody else.", code="own_request")
