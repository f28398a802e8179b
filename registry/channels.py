"""The channels between control plane and routers, all in Valkey."""

from __future__ import annotations

import redis
from django.conf import settings
from django.utils.timezone import now

ROUTING_TABLE = "ah:routing-table"
WANTS = "ah:wants"
OUTCOMES = "ah:outcomes"
ASKED_WITHIN_S = 60


def valkey() -> redis.Redis:
    """A connection to the Valkey that all routers listen to."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=5)


def wanted_now() -> set[str]:
    """Cold versions that routers asked for within the last minute, by served name."""
    since = int((now().timestamp() - ASKED_WITHIN_S) * 1000)
    with valkey() as client:
        entries = client.xrange(WANTS, min=str(since))
    return {fields[b"version"].decode() for _, fields in entries}
