"""Session data about the sign-in, the list of sessions, and the audit events of sign-ins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.contrib.auth import logout
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.contrib.sessions.models import Session
from django.db import transaction
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse

from adapterhub.accounts.login_lockout import address_of, drop_old_attempts, note_refused
from adapterhub.accounts.models import SignIn, User
from adapterhub.audit.access_log import observe
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor

# A session is written at most this often because of a click.
NOTED_EVERY_S = 60


@receiver(user_logged_in)
def remember(request: HttpRequest, user: User, **_: Any) -> None:
    """Note a sign-in, as a receiver of Django's signal.

    It stores the time in the session, for signatures and the session's end; adds the session to the person's list;
    records the event; and deletes old counters of failed attempts.
    """
    request.session["signed_in_at"] = request.session["began_at"] = time.time()
    note_activity(request)
    note(request, user)
    drop_old_attempts()
    by = user.as_actor(request.session.get("auth_method", "session"))
    observe(Tag.SESSION_OPENED, by=by, project=None, resource="sign-in", evidence={"method": by.method})


def end_of_sessions(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Return a middleware that signs out a session that is idle for too long or too old.

    It must come after the authentication middleware. Other requests of a person keep the session from being idle.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        if request.user.is_authenticated:
            if is_over(request):
                logout(request)
            elif is_activity(request):
                note_activity(request)
        return get_response(request)

    return middleware


def is_over(request: HttpRequest) -> bool:
    """Return True if the session is idle for longer than SESSION_IDLE_S or older than SESSION_COOKIE_AGE."""
    at, session = time.time(), request.session
    idle, age = at - session.get("seen_at", 0), at - session.get("began_at", 0)
    return bool(idle > settings.SESSION_IDLE_S or age > settings.SESSION_COOKIE_AGE)


def is_activity(request: HttpRequest) -> bool:
    """Return True for a request of a person; False for polls and event streams, which keep no session alive."""
    is_poll = request.method == "GET" and ("HX-Request" in request.headers or request.path == "/healthz")
    return not is_poll and "text/event-stream" not in request.headers.get("Accept", "")


def note_activity(request: HttpRequest) -> None:
    """Store the time of a person's request, at most every NOTED_EVERY_S seconds, and set when the session expires."""
    at, session = time.time(), request.session
    if at - session.get("seen_at", 0) > min(NOTED_EVERY_S, settings.SESSION_IDLE_S / 4):
        session["seen_at"] = at
        left = session["began_at"] + settings.SESSION_COOKIE_AGE - at
        session.set_expiry(max(1, math.ceil(min(settings.SESSION_IDLE_S, left))))


def note(request: HttpRequest, user: User) -> None:
    """Add the session to its user's list, or update user, sign-in method, address and browser of its entry.

    A session without a key is saved first. The time of an entry is not updated.
    """
    if not request.session.session_key:
        request.session.save()
    fields = {
        "user": user,
        "method": request.session.get("auth_method", "session"),
        "address": address_of(request),
        "agent": request.META.get("HTTP_USER_AGENT", "")[:200],
    }
    SignIn.objects.update_or_create(session_key=request.session.session_key, defaults=fields)


@transaction.atomic
def end(sign_in: SignIn, *, by: Actor, reason: str = "") -> None:
    """End a session, remove it from its user's list and record it: its next request has to sign in again."""
    Session.objects.filter(session_key=sign_in.session_key).delete()
    after = {"since": sign_in.at.isoformat()}
    AuditEvent.record(Tag.SESSION_REVOKED, sign_in.user, by=by, project=None, after=after, reason=reason)
    sign_in.delete()


@receiver(user_login_failed)
def note_failure(credentials: dict[str, Any], **_: Any) -> None:
    """Record a failed sign-in with the name that was tried, as a receiver of Django's signal."""
    note_refused(str(credentials.get("username", "")))
