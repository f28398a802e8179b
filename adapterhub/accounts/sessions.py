"""What a session remembers of its sign-in, and the sign-ins that the audit trail keeps."""

from __future__ import annotations

import time
from typing import Any

from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.dispatch import receiver
from django.http import HttpRequest

from adapterhub.accounts.actor import Actor
from adapterhub.accounts.models import User
from adapterhub.audit.observed import observe
from adapterhub.audit.tags import Tag


@receiver(user_logged_in)
def remember(request: HttpRequest, user: User, **_: Any) -> None:
    """When and how; a signature asks for it."""
    request.session["signed_in_at"] = time.time()
    by = user.as_actor(request.session.get("auth_method", "session"))
    observe(Tag.SESSION_OPENED, by=by, project=None, what="sign-in", evidence={"method": by.method})


@receiver(user_login_failed)
def note_failure(credentials: dict[str, Any], **_: Any) -> None:
    """The name that was tried; never the password."""
    name = str(credentials.get("username", ""))[:150]
    observe(Tag.SESSION_REFUSED, by=Actor(name=name or "?", method="none"), project=None, what="sign-in")
