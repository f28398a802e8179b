"""Sign-in lockout: after ten wrong passwords or codes for a name within ten minutes, sign-in with it is refused."""

from __future__ import annotations

from datetime import timedelta

from django.core.exceptions import ValidationError
from django.utils.timezone import now

from adapterhub.audit.access_log import observe
from adapterhub.audit.models import AuditEvent, UnsealedEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor

ATTEMPTS, WITHIN = 10, timedelta(minutes=10)


def require_calm(name: str) -> None:
    """Check that the name is not locked out. Raises ValidationError.

    The right password is refused too, so that an attacker learns nothing.
    """
    if failures(name) >= ATTEMPTS:
        raise ValidationError("Too many attempts with this name: wait ten minutes.", code="throttled")


def failures(name: str) -> int:
    """Count the refused attempts for the name within ten minutes, from all processes, sealed or not yet."""
    since = now() - WITHIN
    sealed = AuditEvent.objects.filter(project=None, tag=Tag.SESSION_REFUSED, actor_name=name, at__gte=since)
    waiting = UnsealedEvent.objects.filter(
        project=None, fields__tag=Tag.SESSION_REFUSED, fields__actor_name=name, at__gte=since
    )
    return sealed.count() + waiting.count()


def note_refused(name: str) -> None:
    """Record a refused sign-in with the name that was tried, never the password or the code."""
    observe(Tag.SESSION_REFUSED, by=Actor(name=name[:150] or "?", method="none"), project=None, resource="sign-in")
