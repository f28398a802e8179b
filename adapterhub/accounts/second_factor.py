"""The second factor of a local account: a TOTP code of an app (RFC 6238) or a recovery code, each valid once."""

from __future__ import annotations

import base64
import secrets
import time

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.hotp import HOTP
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from django.conf import settings
from django.db import transaction

from adapterhub.accounts.models import SecondFactor, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid
from adapterhub.core.tokens import secret_hash
from adapterhub.encryption import box

STEP_S, DIGITS, RECOVERY_CODES = 30, 6, 10


def is_needed(user: User) -> bool:
    """Return True if the user has a second factor or, with HTTPS on, is an administrator of the installation."""
    has_one = SecondFactor.objects.filter(user=user).exists()
    return has_one or (settings.HTTPS and (user.is_superuser or user.is_staff))


def new_secret() -> str:
    """Return a new secret of 160 random bits in base 32, the format that authenticator apps read."""
    return base64.b32encode(secrets.token_bytes(20)).decode()


def address_for_app(user: User, secret: str) -> str:
    """Return the `otpauth://` address that an app reads from a QR code."""
    app = TOTP(base64.b32decode(secret), DIGITS, sha1(), STEP_S)
    return app.get_provisioning_uri(user.get_username(), "AdapterHub")


def sha1() -> SHA1:
    """Return the hash function of time-based codes."""
    # Authenticator apps support no other hash; HMAC does not depend on the collision resistance that SHA-1 lost.
    return SHA1()  # noqa: S303  # nosec B303


@transaction.atomic
def enable(user: User, secret: str, code: str, *, by: Actor) -> list[str]:
    """Store the second factor, in place of an earlier one, and record it; return the recovery codes.

    The codes cannot be read again. Raises Invalid when `code` is not the app's current one.
    """
    step = step_of(secret, code, after=0)
    if step is None:
        raise Invalid("The code is not the one that your app shows now: wait for the next one.", field="code")
    codes = [secrets.token_hex(5) for _ in range(RECOVERY_CODES)]
    factor_fields = {
        "sealed": box("second_factor").encrypt(secret.encode()),
        "last_step": step,
        "recovery": [secret_hash(c) for c in codes],
    }
    SecondFactor.objects.update_or_create(user=user, defaults=factor_fields)
    AuditEvent.record(Tag.MFA_ENABLED, user, by=by, project=None)
    return codes


@transaction.atomic
def admits(user: User, code: str) -> bool:
    """Return True for a valid code of the app or a recovery code, which is then used up; False for another.

    Raises SecondFactor.DoesNotExist for a user without a second factor.
    """
    factor = SecondFactor.objects.select_for_update().get(user=user)
    step = step_of(box("second_factor").decrypt(bytes(factor.sealed)).decode(), code, after=factor.last_step)
    if step is not None:
        factor.last_step = step
    elif (used := secret_hash(code.strip().lower())) in factor.recovery:
        factor.recovery.remove(used)
    else:
        return False
    factor.save(update_fields=["last_step", "recovery"])
    return True


@transaction.atomic
def disable(user: User, *, by: Actor, reason: str = "") -> None:
    """Delete the second factor and record it. With HTTPS an administrator has to set up another at the next sign-in."""
    SecondFactor.objects.filter(user=user).delete()
    AuditEvent.record(Tag.MFA_REMOVED, user, by=by, project=None, reason=reason)


def step_of(secret: str, code: str, *, after: int) -> int | None:
    """Return the number of 30-second steps since 1970 at which the app shows the code; None if it is wrong.

    Only the present step and its two neighbours match, and only later ones than `after`, the last that was used.
    """
    app, present = HOTP(base64.b32decode(secret), DIGITS, sha1()), int(time.time()) // STEP_S
    typed = code.replace(" ", "").encode()
    for step in range(max(present - 1, after + 1), present + 2):
        try:
            app.verify(typed, step)
        except InvalidToken:
            continue
        return step
    return None
