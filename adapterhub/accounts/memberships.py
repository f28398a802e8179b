"""Roles and settings of a project, each change with its audit event, and the history of who had which role."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from django.db import IntegrityError, transaction

from adapterhub.accounts.models import Membership, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.core.tenancy import Role


def create_project(slug: str, name: str, *, by: Actor, admin: User | None = None) -> Project:
    """Create a project with its audit event and return it; `admin`, if given, gets that role in it.

    Raises Conflict for a used slug.
    """
    try:
        with transaction.atomic():
            project = Project.objects.create(slug=slug, name=name)
            AuditEvent.record(Tag.PROJECT_CREATED, project, by=by, project=project)
            if admin:
                grant(project, admin, Role.ADMIN, by=by)
    except IntegrityError:
        raise Conflict(f"The slug {slug!r} is taken: choose another.", field="slug", code="slug_taken") from None
    return project


@transaction.atomic
def grant(
    project: Project, user: User, role: str, *, by: Actor, by_group: bool = False, invited_by: str = ""
) -> Membership:
    """Grant the role and return the membership; if it is held already, change nothing and write no event.

    `by_group` marks it as granted by a group of the identity provider. `invited_by` is the name of who offered the role
    to a person who accepted it.
    """
    membership, is_new = Membership.objects.get_or_create(
        project=project, user=user, role=role, defaults={"by_group": by_group}
    )
    if is_new:
        role_fields = {"user": user.username, "role": role, **({"invited_by": invited_by} if invited_by else {})}
        AuditEvent.record(Tag.MEMBERSHIP_GRANTED, membership, by=by, project=project, after=role_fields)
    return membership


def grant_further(project: Project, name: str, role: str, *, by: Actor) -> Membership:
    """Grant a further role to somebody who is in the project, and return the membership.

    Raises Invalid if nobody of this name is in it, in the same words whether there is such an account or not.
    """
    user = User.objects.filter(username=name, memberships__project=project).first()
    if user is None:
        raise Invalid(
            f"{name!r} is not in this project: invite the person with projects/{project.slug}/invitations/.",
            field="user",
            code="not_a_member",
        )
    return grant(project, user, role, by=by)


def role_held(project: Project, name: str, role: str) -> Membership:
    """Return the membership of the user with this name and role.

    Raises Invalid if there is none, in the same words whether there is such an account or not.
    """
    membership = project.memberships.filter(user__username=name, role=role).select_related("user").first()
    if membership is None:
        raise Invalid(f"{name!r} is not {role} in this project: see members/ for its roles.", field="role")
    return membership


@transaction.atomic
def revoke(membership: Membership, *, by: Actor, reason: str = "") -> None:
    """Delete the membership and record it in the audit trail."""
    pk, role_fields = membership.pk, {"user": membership.user.username, "role": membership.role}
    membership.delete()
    membership.pk = pk
    AuditEvent.record(
        Tag.MEMBERSHIP_REVOKED, membership, by=by, project=membership.project, before=role_fields, reason=reason
    )


@transaction.atomic
def set_named_versions(project: Project, named_versions: str, *, reason: str, by: Actor) -> None:
    """Set which versions callers may name, of adapters with a protected alias, and record it in the audit trail.

    `named_versions` is `approved` (approved versions only) or `any`.
    """
    locked = Project.objects.select_for_update().get(pk=project.pk)
    before, project.named_versions = locked.named_versions, named_versions
    project.save(update_fields=["named_versions"])
    AuditEvent.record(
        Tag.PROJECT_CHANGED,
        project,
        by=by,
        project=project,
        before={"named_versions": before},
        after={"named_versions": named_versions},
        reason=reason,
    )


@dataclass
class Tenure:
    """A period in which a user had a role, from `since` until `until` (None: still).

    `by` is the name of who granted the role, or who offered it if the user accepted an invitation.
    """

    project: Project
    user: str
    role: str
    since: datetime
    by: str
    until: datetime | None = None

    def covers(self, at: datetime) -> bool:
        """Return True if the user held the role at that time."""
        return self.since <= at and (self.until is None or at < self.until)


def tenures(projects: Iterable[Project]) -> list[Tenure]:
    """Return every period in a role that the audit trails of the projects record, oldest first."""
    open_tenures: dict[str, Tenure] = {}
    ended = []
    wanted = (Tag.MEMBERSHIP_GRANTED, Tag.MEMBERSHIP_REVOKED)
    events = AuditEvent.objects.filter(project__in=projects, tag__in=wanted).select_related("project")
    for event in events.order_by("project", "sequence"):
        if event.tag == Tag.MEMBERSHIP_GRANTED:
            open_tenures[event.object_id] = tenure_of(event)
        elif tenure := open_tenures.pop(event.object_id, None):
            tenure.until = event.at
            ended.append(tenure)
    return sorted([*ended, *open_tenures.values()], key=lambda tenure: tenure.since)


def tenure_of(event: AuditEvent) -> Tenure:
    """Return the period in a role that begins with this event, a grant; it has no end yet.

    Old events hold the role only in the object's name: `NAME is ROLE in PROJECT`.
    """
    role_fields = event.after or {}
    user, _, rest = event.object_name.partition(" is ")
    role = role_fields.get("role", rest.split(" ")[0])
    by = role_fields.get("invited_by", event.actor_name)
    return Tenure(cast(Project, event.project), role_fields.get("user", user), role, event.at, by)


def roles_at(project: Project, at: datetime) -> list[Tenure]:
    """Return the periods in a role, of users of the project, that cover this time, the oldest first."""
    return [tenure for tenure in tenures([project]) if tenure.covers(at)]
