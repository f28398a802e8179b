"""The verbs of invitations, each with its audit event.

An invitation is for an address, which is never looked up: who sends one does not learn whether there is an account.
"""

from __future__ import annotations

from datetime import timedelta

from allauth.socialaccount.models import SocialAccount
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import IntegrityError, models, transaction
from django.utils.timezone import now

from adapterhub.accounts import memberships
from adapterhub.accounts.models import Invitation, InvitationQuerySet, Project, User
from adapterhub.accounts.signing_rules import people_behind
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict, Invalid
from adapterhub.core.tenancy import Scope

STANDS = timedelta(days=14)
MOST_OPEN = 200


def for_person(user: User) -> InvitationQuerySet:
    """Return the open invitations to the person; none to a service account or an inactive one."""
    rows = Invitation.objects.open().select_related("project", "invited_by")
    return rows.filter(address__in=addresses_of(user)) if not user.is_service and user.is_active else rows.none()


def addresses_of(user: User) -> set[str]:
    """Return the addresses under which a person can be invited: the user name, and the mail address in lower case.

    A user name with an @ does not count, since anybody may choose one; nor does a mail address that the identity
    provider calls unverified.
    """
    names = set() if "@" in user.username else {user.username}
    claims = SocialAccount.objects.filter(user=user).values_list("extra_data", flat=True)
    is_unverified = any(
        part.get("email_verified") is False
        for claim in claims
        for part in (claim, claim.get("userinfo") or {}, claim.get("id_token") or {})
    )
    return names if is_unverified or not user.email else names | {in_one_form(user.email)}


def in_one_form(address: str) -> str:
    """Return the address without surrounding spaces, and a mail address in lower case."""
    address = address.strip()
    return address.lower() if "@" in address else address


def require_address(text: str) -> str:
    """Return the address in its one form. Raises Invalid for what is neither a mail address nor a user name."""
    address = in_one_form(text)
    try:
        if "@" in address:
            validate_email(address)
        else:
            User.username_validator(address)
    except ValidationError:
        raise Invalid(
            "Give a mail address or a user name: letters, digits and . + - _ without spaces.", field="address"
        ) from None
    return address


def send(project: Project, address: str, role: str, *, by: Actor, reason: str = "") -> Invitation:
    """Invite whoever has the address, now or later, to a role of the project, and record it; return the invitation.

    Overdue invitations of the project are marked as expired. Raises Invalid for a malformed address and if no person is
    behind `by`, Conflict if the same offer or MOST_OPEN others are open.
    """
    address = require_address(address)
    sender = by.user if by.user and not by.user.is_service else min(people_behind(by), key=lambda person: person.pk)
    with transaction.atomic():
        Project.objects.select_for_update().get(pk=project.pk)
        overdue = project.invitations.filter(state=Invitation.State.OPEN, expires_at__lte=now())
        overdue.update(state=Invitation.State.EXPIRED, closed_at=models.F("expires_at"))
        if project.invitations.open().count() >= MOST_OPEN:
            raise Conflict(f"{MOST_OPEN} invitations are open: revoke some first.", code="too_many_invitations")
        try:
            with transaction.atomic():
                invitation = Invitation.objects.create(
                    project=project, address=address, role=role, invited_by=sender, expires_at=now() + STANDS
                )
        except IntegrityError:
            raise Conflict(
                f"{address} is invited as {role} already: revoke that invitation first.",
                field="address",
                code="already_invited",
            ) from None
        after = {"address": address, "role": role}
        AuditEvent.record(Tag.INVITATION_SENT, invitation, by=by, project=project, after=after, reason=reason)
    return invitation


def accept(invitation: Invitation, *, by: Actor) -> None:
    """Grant the acting person the role that was offered, and close the offer as accepted, with their audit events.

    Raises Conflict if the offer is not open or not theirs, for tokens, or if the sender is no admin of the project any
    more.
    """
    with transaction.atomic():
        locked = locked_open(invitation, by)
        project, sender = locked.project, locked.invited_by
        # A person who lost the role keeps no way back through an invitation to an account of theirs.
        if not sender.is_active or Scope.ADMIN not in sender.scopes_in(project):
            raise Conflict(
                f"{sender} is no longer an admin of {project}: ask one of its admins for a new invitation.",
                code="invitation_lapsed",
            )
        close(locked, Invitation.State.ACCEPTED)
        memberships.grant(project, by.user, locked.role, by=by, invited_by=sender.username)
        AuditEvent.record(Tag.INVITATION_ACCEPTED, locked, by=by, project=project, after={"role": locked.role})
    invitation.refresh_from_db()


def decline(invitation: Invitation, *, by: Actor) -> None:
    """Close the offer as declined, with its audit event.

    Raises Conflict if it is not open or not to the acting person, and for tokens.
    """
    with transaction.atomic():
        locked = locked_open(invitation, by)
        close(locked, Invitation.State.DECLINED)
        AuditEvent.record(Tag.INVITATION_DECLINED, locked, by=by, project=locked.project)
    invitation.refresh_from_db()


def locked_open(invitation: Invitation, by: Actor) -> Invitation:
    """Return the open invitation to the acting person, locked until the transaction ends.

    Raises Conflict if it is not open or not theirs, and for tokens.
    """
    mine = for_person(by.user) if by.user and not by.token_id else Invitation.objects.none()
    locked = mine.select_for_update(of=("self",)).filter(pk=invitation.pk).first()
    if locked is None:
        raise Conflict("This invitation is no longer open: ask for another one.", code="invitation_closed")
    return locked


def revoke(invitation: Invitation, *, by: Actor, reason: str = "") -> None:
    """Close the offer as revoked, with its audit event. Raises Conflict unless it is open."""
    with transaction.atomic():
        locked = Invitation.objects.select_for_update(of=("self",)).select_related("project").get(pk=invitation.pk)
        if locked.state != Invitation.State.OPEN:
            raise Conflict(f"This invitation is {locked.state}: reload the page.", code="invitation_closed")
        close(locked, Invitation.State.REVOKED)
        AuditEvent.record(Tag.INVITATION_REVOKED, locked, by=by, project=locked.project, reason=reason)
    invitation.refresh_from_db()


def close(invitation: Invitation, state: Invitation.State) -> None:
    """Save the final state of an invitation, with the present time."""
    invitation.state, invitation.closed_at = state, now()
    invitation.save(update_fields=["state", "closed_at"])
