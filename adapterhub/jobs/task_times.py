"""Times of tasks' last success and ages of waiting messages, kept in Valkey for the metrics of the control plane.

Nothing here raises when Valkey is away, except where it says so: a measurement must not end the work that it measures.
"""

from __future__ import annotations

import json
import logging
import time
from functools import cache
from typing import Any

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving_client.protocol import TASK_SUCCESSES

# The header of a message that says when it was sent, in epoch seconds.
SENT_AT = "ah_sent_at"
TIMEOUT_S = 2.0
log = logging.getLogger(__name__)


@cache
def connections(url: str) -> redis.ConnectionPool:
    """Return this process' connections to Valkey, which wait at most TIMEOUT_S seconds and do not retry."""
    once = Retry(NoBackoff(), 0)
    return redis.ConnectionPool.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=once)


def valkey() -> redis.Redis:
    """Return a client of the Valkey server that holds the queues."""
    return redis.Redis(connection_pool=connections(settings.REDIS_URL))


def stamp(headers: dict[str, Any]) -> None:
    """Add the present time to a message's headers as the time at which it is sent."""
    headers[SENT_AT] = time.time()


def note_success(task: str) -> None:
    """Store now as the time at which the task of this name last succeeded; if Valkey is away, log that."""
    try:
        with valkey() as client:
            client.hset(TASK_SUCCESSES, task, str(time.time()))
    except redis.RedisError as error:
        log.warning("Valkey does not answer (%s): the success of %s is not kept.", error, task)


def success_ages() -> dict[str, float]:
    """Return the seconds since the last success of each task, by name. Raises RedisError if Valkey does not answer."""
    with valkey() as client:
        return {name.decode(): max(0.0, time.time() - float(at)) for name, at in client.hgetall(TASK_SUCCESSES).items()}


def queue_ages() -> dict[str, float]:
    """Return for each queue the seconds that its oldest message has waited, 0 for an empty one.

    Raises RedisError if Valkey does not answer.
    """
    with valkey() as client, client.pipeline(transaction=False) as pipe:
        for queue in settings.QUEUES:
            pipe.lindex(queue, -1)
        return {queue: age_of(raw) for queue, raw in zip(settings.QUEUES, pipe.execute(), strict=True)}


def age_of(raw: bytes | None) -> float:
    """Return the age of a message in seconds; 0 without a message, and for one that does not say when it was sent."""
    sent_at = json.loads(raw)["headers"].get(SENT_AT) if raw else None
    return max(0.0, time.time() - sent_at) if sent_at else 0.0


def is_empty(queue: str) -> bool:
    """Return True if no message waits in the queue. Raises RedisError if Valkey does not answer."""
    with valkey() as client:
        return not client.llen(queue)
