"""Signal receivers that write audit events for other apps. A failure to write one fails the request."""

from __future__ import annotations

from typing import Any

from django.dispatch import receiver

from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import access_refused


@receiver(access_refused)
def note_refusal(by: Actor, path: str, code: str, **_: Any) -> None:
    """Record, as a receiver, who was refused the request to which path, and with which code.

    The event is stored outside of the audit chain without a lock; `seal` appends it to the chain later.
    """
    observe(Tag.ACCESS_REFUSED, by=by, project=None, resource=path, evidence={"code": code})
