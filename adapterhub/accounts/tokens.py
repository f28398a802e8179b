"""API tokens made and revoked, each with its event."""

from __future__ import annotations

from datetime import datetime, timedelta

from django.db import transaction
from django.utils.timezone import now

from adapterhub.accounts.actor import Actor
from adapterhub.accounts.models import ApiToken, Project
from adapterhub.api.errors import Invalid
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag

DAYS, LONGEST_DAYS = 90, 366


@transaction.atomic
def create(project: Project, name: str, scopes: list[str], *, by: Actor,
           expires_at: datetime | None = None) -> tuple[ApiToken, str]:  # fmt: skip
    """A new token and its text, which cannot be read again. It lives 90 days unless told. Raises Invalid."""
    expires_at = expires_at or now() + timedelta(days=DAYS)
    if not now() < expires_at <= now() + timedelta(days=LONGEST_DAYS):
        raise Invalid(
            f"expires_at must lie ahead, within {LONGEST_DAYS} days: choose another time.", field="expires_at"
        )
    token, text = ApiToken.issue(project=project, name=name, scopes=scopes, created_by=by.user, expires_at=expires_at)
    after = {"scopes": token.scopes, "expires_at": expires_at.isoformat()}
    AuditEvent.record(Tag.TOKEN_CREATED, token, by=by, project=project, after=after)
    return token, text


@transaction.atomic
def revoke(token: ApiToken, *, by: Actor) -> None:
    """Refuse it from now on; revoking twice keeps the first time."""
    token.revoked_at = token.revoked_at or now()
    token.save(update_fields=["revoked_at"])
    AuditEvent.record(Tag.TOKEN_REVOKED, token, by=by, project=token.project)
