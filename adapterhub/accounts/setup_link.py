"""The setup link: issued on the server while nobody has an account, and used once to create the first administrator."""

from __future__ import annotations

import hmac
import secrets
from datetime import timedelta

from django.db import connection, transaction
from django.utils.timezone import now

from adapterhub.accounts.models import SetupLink, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Conflict
from adapterhub.core.tokens import secret_hash

STANDS = timedelta(hours=1)
METHOD = "setup link"


def is_empty() -> bool:
    """Return True while the installation has no account."""
    return not User.objects.exists()


def issue(*, by: Actor) -> str:
    """Store a new setup link in place of an earlier one, with its audit event; return its secret.

    Raises Conflict if there is an account.
    """
    secret = secrets.token_urlsafe(32)
    with transaction.atomic():
        lock_accounts()
        require_empty()
        fields = {
            "secret_hash": secret_hash(secret),
            "created_at": now(),
            "expires_at": now() + STANDS,
            "used_at": None,
        }
        link, _ = SetupLink.objects.update_or_create(pk=SetupLink.ONLY, defaults=fields)
        after = {"expires_at": link.expires_at.isoformat()}
        AuditEvent.record(Tag.SETUP_LINK_ISSUED, link, by=by, project=None, after=after)
    return secret


def admits(hashed: str) -> bool:
    """Return True if the setup link, unused and unexpired, has a secret of this hash, and nobody has an account.

    `hashed` is what `secret_hash` returns for the secret.
    """
    link = SetupLink.objects.filter(pk=SetupLink.ONLY, used_at=None, expires_at__gt=now()).first()
    return link is not None and hmac.compare_digest(link.secret_hash, hashed) and is_empty()


def create_first_administrator(hashed: str, *, username: str, email: str, password: str) -> User:
    """Create the first administrator with the link whose secret has this hash; end the link, and record both.

    Raises Conflict for a link that is used, expired or replaced, and if there is an account.
    """
    with transaction.atomic():
        lock_accounts()
        link = SetupLink.objects.select_for_update().filter(pk=SetupLink.ONLY).first()
        if link is None or not admits(hashed):
            raise Conflict(
                "This setup link no longer works: it is used, expired or replaced. Print another with "
                "`manage.py setup_link`.",
                code="setup_link_closed",
            )
        user: User = User.objects.create_superuser(username, email, password)
        link.used_at = now()
        link.save(update_fields=["used_at"])
        by = user.as_actor(METHOD)
        AuditEvent.record(Tag.SETUP_LINK_USED, link, by=by, project=None, after={"user": user.username})
        rights = {"is_active": True, "is_staff": True, "is_superuser": True}
        AuditEvent.record(Tag.USER_CREATED, user, by=by, project=None, after=rights)
    return user


def require_empty() -> None:
    """Raise Conflict if the installation has an account."""
    if not is_empty():
        raise Conflict(
            "There are accounts already: an administrator invites further people on the page Invitations.",
            code="has_accounts",
        )


def lock_accounts() -> None:
    """Lock the table of accounts, so that no other transaction creates one until this one ends."""
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE accounts_user IN SHARE ROW EXCLUSIVE MODE")
