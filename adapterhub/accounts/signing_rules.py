"""Rules of signatures: who may sign, how they prove that they are there, who is an author, what a signature means."""

from __future__ import annotations

import time
from collections.abc import Iterable

from django.db import models
from django.http import HttpRequest
from rest_framework.request import Request

from adapterhub.accounts.login_lockout import is_password
from adapterhub.accounts.models import Project, User
from adapterhub.core.actor import Actor
from adapterhub.core.errors import NotAllowed
from adapterhub.core.tenancy import ROLE_SCOPES

FRESH_S = 600


class Meaning(models.TextChoices):
    """The meaning of a signature (21 CFR 11.50): the signer's part in the change."""

    AUTHORED = "authored"
    REVIEWED = "reviewed"
    APPROVED = "approved"


def require_fresh_sign_in(request: HttpRequest | Request, password: str = "") -> None:
    """Check that the caller signed in within the last ten minutes or gives the password.

    Raises NotAllowed, also for tokens since a signature needs the person, and TooMany after too many wrong passwords.
    """
    if getattr(request, "auth", None):
        raise NotAllowed("Tokens cannot approve: sign in as a person.", code="token_cannot_approve")
    if has_signed_in_lately(request) or (password and is_password(request, password)):
        return
    raise NotAllowed(
        "A signature needs your password, or a sign-in of the last ten minutes.",
        field="password",
        code="reauthentication_required",
    )


def has_signed_in_lately(request: HttpRequest | Request) -> bool:
    """Return True if the session's sign-in is at most ten minutes old."""
    since: float = time.time() - request.session.get("signed_in_at", 0)
    return since <= FRESH_S


def require_role_for(scope: str, project: Project, by: Actor) -> User:
    """Return the acting person. Raises NotAllowed for tokens, and for people whose roles do not grant the scope."""
    if by.user is None or by.token_id or by.method in ("token", "system"):
        raise NotAllowed("Only a signed-in person can do this: a token cannot.", code="token_cannot_approve")
    roles = project.memberships.filter(user=by.user).values_list("role", flat=True)
    if not by.user.is_active or not any(scope in ROLE_SCOPES[role] for role in roles):
        raise NotAllowed(f"This needs a role with '{scope}' in project {project.slug!r}.", code="scope_missing")
    user: User = by.user
    return user


def require_another(user: User, authors: Iterable[User | None]) -> None:
    """Check that the user is no author, nor shares an author's mail address. Raises NotAllowed."""
    known = [author for author in authors if author]
    emails = {author.email.casefold() for author in known if author.email}
    if user in known or user.email.casefold() in emails:
        raise NotAllowed("You cannot approve your own change: ask somebody else.", code="own_request")
