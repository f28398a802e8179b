"""Service accounts for programs: they have roles and tokens, outlive their creators, and never sign in."""

from __future__ import annotations

from django.db import IntegrityError, models, transaction

from adapterhub.accounts import memberships, tokens
from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict, Invalid

# Approvers must be people.
ROLES = [role for role in Membership.Role.values if role not in (Membership.Role.APPROVER, Membership.Role.ADMIN)]


def of(projects: models.QuerySet[Project]) -> models.QuerySet[User]:
    """Return the active service accounts with a role in the projects."""
    return User.objects.filter(is_service=True, is_active=True, memberships__project__in=projects).distinct()


def create(project: Project, name: str, role: str, *, by: Actor) -> User:
    """Create an account that only tokens can use. Raises Invalid for its role, Conflict for a name that is taken."""
    if role not in ROLES:
        raise Invalid(f"A service account can have one of these roles: {', '.join(ROLES)}.", field="role")
    try:
        with transaction.atomic():
            account = User(username=name, is_service=True)
            account.set_unusable_password()
            account.save()
            memberships.grant(project, account, role, by=by)
            AuditEvent.record(Tag.SERVICE_ACCOUNT_CREATED, account, by=by, project=project, after={"role": role})
    except IntegrityError:
        raise Conflict(f"The name {name!r} is taken: choose another one.", field="name", code="name_taken") from None
    return account


@transaction.atomic
def close(account: User, project: Project, *, by: Actor, reason: str = "") -> None:
    """Revoke the account's tokens and roles in the project; deactivate it if no role anywhere is left."""
    for token in ApiToken.objects.filter(account=account, project=project, revoked_at=None):
        tokens.revoke(token, by=by, reason=reason)
    for membership in account.memberships.filter(project=project).select_related("project", "user"):
        memberships.revoke(membership, by=by, reason=reason)
    account.is_active = account.memberships.exists()
    account.save(update_fields=["is_active"])
    AuditEvent.record(Tag.SERVICE_ACCOUNT_CLOSED, account, by=by, project=project, reason=reason)
