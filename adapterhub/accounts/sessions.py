"""Session data about the sign-in, the list of sessions, and the audit events of sign-ins."""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import Any

from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.contrib.sessions.models import Session
from django.db import transaction
from django.dispatch import receiver
from django.http import HttpRequest

from adapterhub.accounts.login_lockout import note_refused
from adapterhub.accounts.models import SignIn, User
from adapterhub.audit.access_log import observe
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor


@receiver(user_logged_in)
def remember(request: HttpRequest, user: User, **_: Any) -> None:
    """Store the time of a sign-in, which signatures check, list the session and record its audit event."""
    request.session["signed_in_at"] = time.time()
    note(request, user)
    by = user.as_actor(request.session.get("auth_method", "session"))
    observe(Tag.SESSION_OPENED, by=by, project=None, resource="sign-in", evidence={"method": by.method})


def note(request: HttpRequest, user: User) -> None:
    """Add the session to its user's list."""
    if not request.session.session_key:
        request.session.save()
    fields = {
        "user": user,
        "method": request.session.get("auth_method", "session"),
        "address": address_of(request),
        "agent": request.META.get("HTTP_USER_AGENT", "")[:200],
    }
    SignIn.objects.update_or_create(session_key=request.session.session_key, defaults=fields)


def address_of(request: HttpRequest) -> str | None:
    """Return the peer's IP address, or None when there is none, as behind a Unix socket."""
    try:
        return str(ip_address(request.META.get("REMOTE_ADDR", "")))
    except ValueError:
        return None


@transaction.atomic
def end(sign_in: SignIn, *, by: Actor, reason: str = "") -> None:
    """End a session: its next request has to sign in again."""
    Session.objects.filter(session_key=sign_in.session_key).delete()
    after = {"since": sign_in.at.isoformat()}
    AuditEvent.record(Tag.SESSION_REVOKED, sign_in.user, by=by, project=None, after=after, reason=reason)
    sign_in.delete()


@receiver(user_login_failed)
def note_failure(credentials: dict[str, Any], **_: Any) -> None:
    """Count a failed sign-in against the account's lock."""
    note_refused(str(credentials.get("username", "")))
