"""The channels between control plane and routers, all in Valkey."""

from __future__ import annotations

from functools import cache

import redis
from django.conf import settings
from django.utils.timezone import now

ROUTING_TABLE = "ah:routing-table"
ROUTING_CHANGES = "ah:routing-changes"
NEWEST_TABLE = "ah:routing-newest"
WANTS = "ah:wants"
OUTCOMES = "ah:outcomes"
SAMPLES, JUDGING = "ah:samples", "ah:judging"
ASKED_WITHIN_S = 60


def valkey() -> redis.Redis:
    """The Valkey that all routers listen to."""
    return redis.Redis(connection_pool=connections(settings.REDIS_URL))


@cache
def connections(url: str) -> redis.ConnectionPool:
    return redis.ConnectionPool.from_url(url, socket_timeout=5)


def wanted_now() -> set[str]:
    """Cold versions that routers asked for within the last minute, by served name."""
    since = int((now().timestamp() - ASKED_WITHIN_S) * 1000)
    with valkey() as client:
        entries = client.xrange(WANTS, min=str(since))
    return {fields[b"version"].decode() for _, fields in entries}
