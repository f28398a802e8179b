"""Guessing is slow: ten wrong passwords or codes for a name within ten minutes, and the name rests."""

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
    """Raises ValidationError while the name rests, for the right word too, so that nothing is learnt."""
    if failures(name) >= ATTEMPTS:
        raise ValidationError("Too many attempts with this name: wait ten minutes.", code="throttled")


def failures(name: str) -> int:
    """What was refused of late for the name, by any process, sealed or not yet."""
    since = now() - WITHIN
    sealed = AuditEvent.objects.filter(project=None, tag=Tag.SESSION_REFUSED, actor_name=name, at__gte=since)
    waiting = UnsealedEvent.objects.filter(
        project=None, fields__tag=Tag.SESSION_REFUSED, fields__actor_name=name, at__gte=since
    )
    return sealed.count() + waiting.count()


def note_refused(name: str) -> None:
    """The name that was tried; never the password or the code."""
    observe(Tag.SESSION_REFUSED, by=Actor(name=name[:150] or "?", method="none"), project=None, what="sign-in")
