"""What the trail keeps of other apps' signals. A failure to write it is a failure of the request."""

from __future__ import annotations

from typing import Any

from django.dispatch import receiver

from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.domain_signals import access_refused


@receiver(access_refused)
def note_refusal(by: Actor, path: str, code: str, **_: Any) -> None:
    """Keep who was refused what; the insert takes no lock."""
    observe(Tag.ACCESS_REFUSED, by=by, project=None, what=path, evidence={"code": code})
