"""Creating, approving, limiting and revoking API tokens, each with its audit event."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction
from django.utils.timezone import now

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.accounts.signing_rules import Meaning, people_behind, require_another, require_role_for
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.core.tenancy import APPROVE, Scope

DAYS, LONGEST_DAYS = 90, 366
# Scope admin grants roles and creates tokens: its holder could appoint an approver.
HIGH = {Scope.ADMIN}
# The limits of a token at the routers, and the highest that each may be; None is no limit.
LIMITS = {"requests_per_s": 1e6, "tokens_per_min": 2**31 - 1}


@transaction.atomic
def create(
    project: Project,
    name: str,
    scopes: list[str],
    *,
    by: Actor,
    expires_at: datetime | None = None,
    account: User | None = None,
    reason: str = "",
    **limits: float | None,
) -> tuple[ApiToken, str]:
    """Create a token, valid for 90 days by default, with its audit event; return it and its text.

    The text cannot be read again. `account` is the service account that it is for; None makes it the creator's own.
    `limits` are `requests_per_s` and `tokens_per_min` at the routers. A token of scope admin needs a reason and works
    after another person's approval; one that the server's own command creates works at once. Raises Invalid for an
    expiry in the past or over 366 days ahead, a missing reason, scopes that its owner does not have, limits out of
    range or without scope infer, and if no person is behind who asks for scope admin.
    """
    require_limitable(scopes, limits)
    expires_at = expires_at or now() + timedelta(days=DAYS)
    if not now() < expires_at <= now() + timedelta(days=LONGEST_DAYS):
        raise Invalid(
            f"expires_at must be in the future and within {LONGEST_DAYS} days: choose another time.", field="expires_at"
        )
    is_high = bool(HIGH.intersection(scopes)) and by.method != "system"
    if is_high:
        people_behind(by)
    if is_high and not reason:
        raise Invalid("A token with scope admin needs a reason for the person who approves it.", field="reason")
    token, text = ApiToken.issue(
        project=project,
        name=name,
        scopes=scopes,
        created_by=by.user,
        expires_at=expires_at,
        account=account,
        reason=reason,
        needs_approval=is_high,
        **limits,
    )
    require_of_owner(token)
    AuditEvent.record(Tag.TOKEN_CREATED, token, by=by, project=project, reason=reason, after=facts_of(token))
    return token, text


@transaction.atomic
def limit(token: ApiToken, *, reason: str, by: Actor, **limits: float | None) -> None:
    """Change the token's limits at the routers and record it; None removes a limit, one that is not named stays.

    Raises Invalid for a value out of range or a token without scope infer, Conflict for one that is revoked or has
    scope admin, since that stays as it was approved.
    """
    locked = ApiToken.objects.select_for_update(of=("self",)).select_related("project").get(pk=token.pk)
    require_limitable(locked.scopes, limits)
    if locked.revoked_at:
        raise Conflict("This token is revoked: create another.", code="invalid_transition")
    if HIGH.intersection(locked.scopes):
        raise Conflict(
            "A token with scope admin stays as it was approved: create another with these limits, and revoke this one.",
            code="invalid_transition",
        )
    before = limits_of(locked)
    for name, value in limits.items():
        setattr(locked, name, value)
    locked.save(update_fields=list(limits))
    AuditEvent.record(
        Tag.TOKEN_CHANGED,
        locked,
        by=by,
        project=locked.project,
        reason=reason,
        before=before,
        after=limits_of(locked),
    )
    token.refresh_from_db()


def require_limitable(scopes: list[str], limits: dict[str, float | None]) -> None:
    """Raise Invalid if a limit is out of range, or is set (not None) for a token without scope infer."""
    for name, value in limits.items():
        if value is not None and not 0 < value <= LIMITS[name]:
            raise Invalid(
                f"{name} lies above 0 and at most at {LIMITS[name]:,.0f}: correct it, or leave it out.", field=name
            )
        if value is not None and Scope.INFER not in scopes:
            raise Invalid(
                "Routers keep this limit, and they take only tokens with scope infer: add the scope, or leave it out.",
                field=name,
            )


def limits_of(token: ApiToken) -> dict[str, float | None]:
    """Return the token's own limits at the routers, by name; None where it has none."""
    return {name: getattr(token, name) for name in LIMITS}


def require_of_owner(token: ApiToken) -> None:
    """Raise Invalid unless the roles of the token's owner in the project grant all of its scopes."""
    if beyond := set(token.scopes) - token.scopes_now():
        raise Invalid(f"{token.owner} has no role here with {', '.join(sorted(beyond))}.", field="scopes")


def facts_of(token: ApiToken) -> dict[str, object]:
    """Return the token's scopes, expiry (ISO 8601), account's name and need of approval, and its limits if it has any.

    Expiry and account are None if there is none. The audit trail keeps them, and the approver signs for them.
    """
    expires = token.expires_at.isoformat() if token.expires_at else None
    account = token.account.get_username() if token.account else None
    limits = limits_of(token) if token.is_limited else {}
    facts = {"scopes": token.scopes, "expires_at": expires, "account": account, "needs_approval": token.needs_approval}
    return {**facts, **limits}


@transaction.atomic
def approve(token: ApiToken, *, reason: str, by: Actor, meaning: str = Meaning.APPROVED) -> None:
    """Approve a token of scope admin, which works from then on, with its audit event.

    Raises NotAllowed for its author, tokens, people without the role and people without a mail address, Conflict if it
    does not wait for an approval.
    """
    locked = ApiToken.objects.select_for_update(of=("self",)).select_related("project", "created_by").get(pk=token.pk)
    user = require_role_for(APPROVE, locked.project, by)
    require_another(user, [locked.created_by])
    if not locked.is_waiting or locked.revoked_at:
        raise Conflict("This token is not waiting for approval: reload the page.", code="not_waiting")
    locked.approved_by, locked.approved_at = user, now()
    locked.save(update_fields=["approved_by", "approved_at"])
    AuditEvent.record(
        Tag.TOKEN_APPROVED,
        locked,
        by=by,
        project=locked.project,
        reason=reason,
        after={"meaning": str(meaning)},
        evidence=facts_of(locked),
    )
    token.refresh_from_db()


@transaction.atomic
def revoke(token: ApiToken, *, by: Actor, reason: str = "") -> None:
    """Revoke the token and record it; a second call keeps the time of the first, but records another event."""
    token.revoked_at = token.revoked_at or now()
    token.save(update_fields=["revoked_at"])
    AuditEvent.record(Tag.TOKEN_REVOKED, token, by=by, project=token.project, reason=reason)
