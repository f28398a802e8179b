"""The control plane's connection to Valkey, and the cold versions that routers request through it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

import redis
from django.conf import settings
from django.utils.timezone import now
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving_client.protocol import ANSWERED, WANTED_VERSION, WANTS

REQUESTED_WITHIN_S = 60
# Somebody waits for the answer to a committed change, and is told of a Valkey that hangs.
PUBLISH_TIMEOUT_S = 2.0


def valkey() -> redis.Redis:
    """Return a client of the Valkey server that all routers use; it waits up to 5 seconds for an answer."""
    return redis.Redis(connection_pool=connections(settings.REDIS_URL))


def valkey_for_publication() -> redis.Redis:
    """Return a client that waits at most PUBLISH_TIMEOUT_S seconds for an answer and does not retry."""
    return redis.Redis(connection_pool=hasty_connections(settings.REDIS_URL))


@cache
def hasty_connections(url: str) -> redis.ConnectionPool:
    """Return the process' pool of connections for publications: they wait PUBLISH_TIMEOUT_S and do not retry."""
    once = Retry(NoBackoff(), 0)
    return redis.ConnectionPool.from_url(
        url, socket_timeout=PUBLISH_TIMEOUT_S, socket_connect_timeout=PUBLISH_TIMEOUT_S, retry=once
    )


@cache
def connections(url: str) -> redis.ConnectionPool:
    """Return the process' pool of connections to this address, which wait up to 5 seconds for an answer."""
    return redis.ConnectionPool.from_url(url, socket_timeout=5)


def wanted_now() -> dict[str, list[datetime]]:
    """Return the versions that routers requested within the last minute because no replica held them.

    It maps served names to the times of their requests, oldest first. Raises RedisError if Valkey is down.
    """
    since = int((now().timestamp() - REQUESTED_WITHIN_S) * 1000)
    with valkey() as client:
        entries = client.xrange(WANTS, min=str(since))
    requested: dict[str, list[datetime]] = {}
    for entry, fields in entries:
        at = datetime.fromtimestamp(int(entry.split(b"-")[0]) / 1000, UTC)
        requested.setdefault(fields[WANTED_VERSION.encode()].decode(), []).append(at)
    return requested


def still_open(requested: dict[str, list[datetime]], loaded: set[str]) -> list[str]:
    """Return the served names requested since they were last seen loaded, that with the oldest such request first.

    `requested` is the result of `wanted_now`. A router repeats a request while somebody waits, which must not cost its
    place. Those in `loaded` are recorded in Valkey as seen now. Raises RedisError if Valkey is down.
    """
    with valkey() as client:
        # Valkey's clock, because the requests were recorded by it.
        seconds, micros = client.time()
        if loaded_since := {name: seconds + micros / 1e6 for name in requested if name in loaded}:
            client.zadd(ANSWERED, loaded_since)
            client.expire(ANSWERED, 2 * REQUESTED_WITHIN_S)
        answered = dict(client.zrange(ANSWERED, 0, -1, withscores=True))
    waiting_since = {
        name: since
        for name, times in requested.items()
        if (since := min((at for at in times if at.timestamp() > answered.get(name.encode(), 0)), default=None))
    }
    return sorted(waiting_since, key=waiting_since.__getitem__)
