"""Service accounts for programs: they have roles and tokens, outlive their creators, and never sign in."""

from __future__ import annotations

from django.db import IntegrityError, models, transaction

from adapterhub.accounts import memberships, tokens
from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.accounts.signing_rules import people_behind
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
    """Create an account that only tokens can use; the person behind `by` owns it.

    Raises Invalid for its role and if nobody answers for `by`, Conflict for a name that is taken.
    """
    owner = min(people_behind(by), key=lambda person: person.pk)
    if role not in ROLES:
        raise Invalid(f"A service account can have one of these roles: {', '.join(ROLES)}.", field="role")
    try:
        with transaction.atomic():
            account = User(username=name, is_service=True, owner=owner)
            account.set_unusable_password()
            account.save()
            memberships.grant(project, account, role, by=by)
            AuditEvent.record(
                Tag.SERVICE_ACCOUNT_CREATED,
                account,
                by=by,
                project=project,
                after={"role": role, "owner": owner.username},
            )
    except IntegrityError:
        raise Conflict(f"The name {name!r} is taken: choose another one.", field="name", code="name_taken") from None
    return account


@transaction.atomic
def hand_over(account: User, owner: User, project: Project, *, by: Actor, reason: str) -> None:
    """Make another person of the project the owner, who answers for the account and cannot sign what it asks.

    Those who made tokens that it still has go on answering for it. Raises Invalid for an owner who is no active person
    of the project.
    """
    if owner.is_service or not owner.is_active or not project.memberships.filter(user=owner).exists():
        raise Invalid(f"{owner} is no active person of this project: choose a member.", field="owner")
    locked = User.objects.select_for_update(of=("self",)).select_related("owner").get(pk=account.pk)
    before = locked.owner.username if locked.owner else None
    account.owner = owner
    account.save(update_fields=["owner"])
    AuditEvent.record(
        Tag.SERVICE_ACCOUNT_HANDED_OVER,
        account,
        by=by,
        project=project,
        before={"owner": before},
        after={"owner": owner.username},
        reason=reason,
    )


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
