"""Service accounts for programs: they have roles and tokens, outlive their creators, and never sign in.

Their names carry the project, as `eu/ci`, and people's names have no `/`, so that a refused name tells nothing of other
projects. Older accounts may have a name without the project. Each change has its audit event.
"""

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


LONGEST_NAME = 90
NAMED = r"^[-\w]+(/[-\w]+)?$"


def full_name(project: Project, name: str) -> str:
    """Return the account's unique user name, as `project/name`."""
    return f"{project.slug}/{name}"


def of(projects: models.QuerySet[Project]) -> models.QuerySet[User]:
    """Return the active service accounts with a role in the projects."""
    return User.objects.filter(is_service=True, is_active=True, memberships__project__in=projects).distinct()


def named(project: Project, name: str) -> User:
    """Return the service account of this name, short or in full. Raises Invalid unless it is active in the project.

    An older account, whose user name is the short name itself, comes first.
    """
    accounts = of(Project.objects.filter(pk=project.pk)).filter(username__in=(name, full_name(project, name)))
    # An account from before has the short name itself.
    account = min(accounts, key=lambda account: account.username != name, default=None)
    if account is None:
        raise Invalid(f"There is no service account {name!r} in this project.", field="account")
    return account


def owner_named(project: Project, name: str) -> User:
    """Return the project's member of this name.

    Raises Invalid, in the same words whether such an account exists or not.
    """
    owner = User.objects.filter(username=name, memberships__project=project).distinct().first()
    if owner is None:
        raise Invalid(f"There is no member {name!r} in this project: choose a member.", field="owner")
    return owner


def create(project: Project, name: str, role: str, *, by: Actor) -> User:
    """Create and return an account that only tokens can use, with its audit event; the person behind `by` owns it.

    Raises Invalid for a role that it cannot have and if no person is behind `by`, Conflict for a name that the project
    uses or used.
    """
    owner = min(people_behind(by), key=lambda person: person.pk)
    if role not in ROLES:
        raise Invalid(f"A service account can have one of these roles: {', '.join(ROLES)}.", field="role")
    if of(Project.objects.filter(pk=project.pk)).filter(username=name).exists():
        raise name_taken(name)
    try:
        with transaction.atomic():
            account = User(username=full_name(project, name), is_service=True, owner=owner)
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
        raise name_taken(name) from None
    return account


def name_taken(name: str) -> Conflict:
    """Return the Conflict for a name that an account of the project has or had."""
    return Conflict(f"The name {name!r} is taken: choose another one.", field="name", code="name_taken")


@transaction.atomic
def hand_over(account: User, owner: User, project: Project, *, by: Actor, reason: str) -> None:
    """Make another person of the project the owner, and record it.

    The owner answers for the account and cannot sign what it asks for. Whoever made a token that still works also goes
    on answering for it. Raises Invalid for an owner who is no active person of the project.
    """
    if owner.is_service or not owner.is_active or not project.memberships.filter(user=owner).exists():
        raise Invalid(f"{owner} is not an active member of this project: choose one who is.", field="owner")
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
    """Revoke the account's tokens and roles in the project, and record it; deactivate it if it has no role anywhere."""
    for token in ApiToken.objects.filter(account=account, project=project, revoked_at=None):
        tokens.revoke(token, by=by, reason=reason)
    for membership in account.memberships.filter(project=project).select_related("project", "user"):
        memberships.revoke(membership, by=by, reason=reason)
    account.is_active = account.memberships.exists()
    account.save(update_fields=["is_active"])
    AuditEvent.record(Tag.SERVICE_ACCOUNT_CLOSED, account, by=by, project=project, reason=reason)
