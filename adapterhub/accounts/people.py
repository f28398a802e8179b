"""Accounts of people: created and closed by administrators of the installation, each change with its audit event."""

from __future__ import annotations

from typing import Any

from django.db import IntegrityError, transaction

from adapterhub.accounts.models import User
from adapterhub.accounts.sessions import end
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict


def create(username: str, email: str, *, by: Actor) -> User:
    """Create an account without a password, which the person chooses by a link, with its audit event.

    Raises Conflict for a used name.
    """
    try:
        with transaction.atomic():
            user: User = User.objects.create_user(username, email)
            AuditEvent.record(Tag.USER_CREATED, user, by=by, project=None, after={"email": email})
    except IntegrityError:
        raise Conflict(f"The user name {username!r} is taken.", field="username", code="name_taken") from None
    return user


def close(user: User, *, by: Actor, reason: str) -> None:
    """Close an account, end its sessions and record both. Raises Conflict for one's own account."""
    if by.user == user:
        raise Conflict("Another administrator closes your account.", code="own_account")
    with transaction.atomic():
        for sign_in in user.sign_ins.open():
            end(sign_in, by=by, reason=reason)
        change(user, by=by, reason=reason, is_active=False)


def reopen(user: User, *, by: Actor, reason: str) -> None:
    """Let the person sign in again, with the password from before, and record it."""
    change(user, by=by, reason=reason, is_active=True)


def forget_password(user: User, *, by: Actor, reason: str) -> None:
    """Make the password unusable and record it; the person has to choose another by a link."""
    user.set_unusable_password()
    change(user, by=by, reason=reason, password=user.password)


def choose_password(user: User, password: str, *, by: Actor) -> None:
    """Set the password that the person chose, and record that it changed."""
    user.set_password(password)
    change(user, by=by, password=user.password)


@transaction.atomic
def change(user: User, *, by: Actor, reason: str = "", **fields: Any) -> None:
    """Save the fields and record their names and values in the audit trail; of a password only the name."""
    for name, value in fields.items():
        setattr(user, name, value)
    user.save(update_fields=list(fields))
    after = {"changed": sorted(fields), **{name: value for name, value in fields.items() if name != "password"}}
    AuditEvent.record(Tag.USER_CHANGED, user, by=by, project=None, after=after, reason=reason)
