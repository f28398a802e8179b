"""Lockout after failed attempts, the same for passwords, wherever they are asked for, and for codes.

Attempts are counted under a name at an address, so that nobody locks a stranger's name out from elsewhere. After a few
wrong ones the next has to wait, each time twice as long. An attempt is counted before the secret is checked: a hundred
attempts at the same time are a hundred.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address, ip_network
from typing import cast

from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest
from django.utils.timezone import now
from rest_framework.request import Request

from adapterhub.accounts.models import FailedAttempts, User
from adapterhub.audit.access_log import observe
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import Actor
from adapterhub.core.errors import TooMany

FREE, FREE_CODES = 5, 20
FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=10), timedelta(hours=1)
# A failed attempt is forgotten after this time, one after the other.
ONE_FORGOTTEN_IN = timedelta(hours=1)
# The longest delay keeps a counter below `FREE_CODES` + 10.
KEPT = timedelta(days=2)


@dataclass(frozen=True)
class Brake:
    """A counter of failed attempts under `key`; the first `free` of them have no delay."""

    key: str
    free: int = FREE


def sign_in_brakes(name: str, request: HttpRequest | Request | None) -> list[Brake]:
    """Return the counters of sign-ins with this name from the request's address."""
    return [brake("password", name.casefold(), network_of(request))]


def signature_brakes(user: User, request: HttpRequest | Request) -> list[Brake]:
    """Return the counters for a password that a signed-in person types: by name and address, and by session.

    The one by session holds for any address, so that whoever has somebody's session gains nothing by changing it.
    """
    session = brake("session", str(request.session.session_key))
    return [*sign_in_brakes(user.get_username(), request), session]


def code_brakes(user: User, request: HttpRequest | Request) -> list[Brake]:
    """Return the counters for codes of the second factor: by name and address, and by name alone.

    Only somebody who knows the password gets as far as a code, and a code has only six digits.
    """
    name = user.get_username().casefold()
    return [brake("code", name, network_of(request)), brake("code", name, free=FREE_CODES)]


def brake(*parts: str, free: int = FREE) -> Brake:
    """Return a counter under a hash of the parts, which does not reveal them.

    The first `free` attempts have no delay.
    """
    return Brake(hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest(), free)


def claim(brakes: Iterable[Brake]) -> None:
    """Count an attempt under each counter, before the secret is checked.

    Raises TooMany, and counts nothing, while one of them has to wait.
    """
    with transaction.atomic():
        counted = {one: attempts_under(one) for one in sorted(brakes, key=lambda one: one.key)}
        wait = max(attempts.blocked_until for attempts in counted.values()) - now()
        if wait <= timedelta(0):
            for one, attempts in counted.items():
                count(attempts, one.free)
    if wait > timedelta(0):
        seconds = max(1, round(wait.total_seconds()))
        unit = "seconds" if seconds > 1 else "second"
        raise TooMany(
            f"Too many attempts with this name: wait {seconds} {unit}, then try again.", wait_s=wait.total_seconds()
        )


def attempts_under(one: Brake) -> FailedAttempts:
    """Return the row of the counter `one`, locked until the transaction ends; create it if there is none."""
    FailedAttempts.objects.bulk_create([FailedAttempts(key=one.key)], ignore_conflicts=True)
    return FailedAttempts.objects.select_for_update().get(key=one.key)


def count(attempts: FailedAttempts, free: int) -> None:
    """Count and save one more failed attempt; from the one numbered `free` on, block the next for a while."""
    at = now()
    level = max(0.0, attempts.level - (at - attempts.at) / ONE_FORGOTTEN_IN) + 1
    attempts.level, attempts.at, attempts.blocked_until = level, at, at + wait_after(level, free)
    attempts.save()


def wait_after(level: float, free: int) -> timedelta:
    """Return the delay after so many failed attempts.

    There is none below `free`; from there on it is FIRST_WAIT, doubled with each further attempt, up to LONGEST_WAIT.
    """
    over = round(level) - free
    return timedelta(0) if over < 0 else min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(over, 20))


def forget(brakes: Iterable[Brake]) -> None:
    """Reset the counters after a right secret."""
    FailedAttempts.objects.filter(key__in=[one.key for one in brakes]).update(level=0, blocked_until=now())


def drop_old_attempts() -> None:
    """Delete the counters whose attempts are all forgotten."""
    FailedAttempts.objects.filter(at__lt=now() - KEPT).delete()


def is_password(request: HttpRequest | Request, password: str) -> bool:
    """Return True if it is the password of the signed-in user. Each wrong one counts and is recorded.

    Raises TooMany after too many wrong ones.
    """
    user = cast(User, request.user)
    brakes = signature_brakes(user, request)
    claim(brakes)
    if user.check_password(password):
        forget(brakes)
        return True
    note_refused(user.get_username())
    return False


def is_typed_password(request: HttpRequest, password: str) -> bool:
    """Return the result of `is_password` for a form: raises ValidationError, not TooMany, while locked out."""
    with as_form_error():
        return is_password(request, password)


@contextmanager
def as_form_error() -> Iterator[None]:
    """Convert TooMany, raised in the block, to a ValidationError of the form's field."""
    try:
        yield
    except TooMany as error:
        raise ValidationError(error.detail, code="throttled") from None


def note_refused(name: str) -> None:
    """Record a refused sign-in with the name that was tried, cut to 150 characters; never the password or the code."""
    observe(Tag.SESSION_REFUSED, by=Actor(name=name[:150] or "?", method="none"), project=None, resource="sign-in")


def address_of(request: HttpRequest | Request | None) -> str | None:
    """Return the peer's IP address, or None when there is none, as behind a Unix socket."""
    try:
        return str(ip_address(request.META.get("REMOTE_ADDR", ""))) if request else None
    except ValueError:
        return None


def network_of(request: HttpRequest | Request | None) -> str:
    """Return the address that attempts are counted under; empty if it is not known.

    Of IPv6 it is the /64 network, as one caller may have all of its addresses.
    """
    address = address_of(request)
    return str(ip_network(f"{address}/64", strict=False)) if address and ":" in address else address or ""
