"""Rules of signatures: who may sign, how they prove that they are there, who is an author, what a signature means.

A request stands for people: tokens and service accounts for those who own them, and all accounts of one mail address
for one person.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from django.db import models
from django.db.models import Q
from django.http import HttpRequest
from rest_framework.request import Request

from adapterhub.accounts.login_lockout import is_password
from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid, NotAllowed
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
    """Return True if the session's sign-in is at most ten minutes old; False without a sign-in."""
    since: float = time.time() - request.session.get("signed_in_at", 0)
    return since <= FRESH_S


def require_role_for(scope: str, project: Project, by: Actor) -> User:
    """Return the acting person.

    Raises NotAllowed for tokens, service accounts and the system, and for people whose roles do not grant the scope.
    """
    if by.user is None or by.user.is_service or by.token_id or by.method in ("token", "system"):
        raise NotAllowed("Only a signed-in person can do this: a token cannot.", code="token_cannot_approve")
    roles = project.memberships.filter(user=by.user).values_list("role", flat=True)
    if not by.user.is_active or not any(scope in ROLE_SCOPES[role] for role in roles):
        raise NotAllowed(f"This needs a role with '{scope}' in project {project.slug!r}.", code="scope_missing")
    user: User = by.user
    return user


def require_another(user: User, authors: Iterable[User | None]) -> None:
    """Check that the signer is none of the people behind the authors, and has a mail address.

    Raises NotAllowed otherwise, also for a second account with an author's mail address.
    """
    keys = mail_keys([user])
    if not keys:
        raise NotAllowed(
            "A signer needs a mail address in ASCII (a domain of other letters as xn--...): have an administrator add "
            "yours to your account.",
            code="email_missing",
        )
    people = people_of(author for author in authors if author)
    if user in people or keys & mail_keys(people):
        raise NotAllowed("You cannot approve your own change: ask somebody else.", code="own_request")


def mail_keys(users: Iterable[User]) -> set[str]:
    """Return the accounts' mail addresses, normalised so that all spellings of one are equal, without empty ones."""
    rows = User.objects.filter(pk__in=[user.pk for user in users]).annotate(
        mail_key=models.Func("email", function="accounts_mail_key", output_field=models.TextField())
    )
    return set(rows.exclude(mail_key="").values_list("mail_key", flat=True))


def people_of(accounts: Iterable[User]) -> set[User]:
    """Return the people behind accounts: a person is one; for a service account its owner and its tokens' makers.

    Only makers of tokens that are usable now count.
    """
    people = set()
    for account in accounts:
        people |= owners_of(account) if account.is_service else {account}
    return people


def owners_of(account: User) -> set[User]:
    """Return the people who answer for a service account now: its owner and the makers of its usable tokens."""
    makers = Q(pk__in=ApiToken.objects.usable().filter(account=account).values("created_by"))
    return set(User.objects.filter(makers | Q(pk=account.owner_id), is_service=False))


def people_behind(by: Actor) -> set[User]:
    """Return the people for whom an actor acts, at least one. Raises Invalid if nobody answers for it."""
    token = ApiToken.objects.select_related("account", "created_by").filter(pk=by.token_id).first()
    accounts = [by.user, *([token.account, token.created_by] if token else [])]
    if people := people_of(account for account in accounts if account):
        return people
    raise Invalid(
        "Nobody answers for this request: use a token that was made for a person, or hand the service account over to "
        "an owner.",
        code="person_missing",
    )
