"""Rate limits of the REST API per token, person or unauthenticated address, in buckets that all web processes share."""

from __future__ import annotations

import functools
import logging
import math
import threading
import time
from typing import TYPE_CHECKING

import redis
from django.conf import settings
from django.http import HttpRequest
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from adapterhub.api.request_state import Taken, marked
from adapterhub.core.counts import counted
from adapterhub.core.errors import TooMany
from serving_client.protocol import CALLER_RATE, RateLimit
from serving_client.rate_limiter import TAKE, Bucket

if TYPE_CHECKING:
    from rest_framework.views import APIView

log = logging.getLogger(__name__)
# The capacity of a bucket, in seconds of the allowed rate.
BURST_S = 2
TIMEOUT_S, PAUSE_S = 0.25, 1.0
# Limits the memory that unauthenticated addresses can take while Valkey does not answer.
MOST_BUCKETS_HERE = 10_000


def headers_of(draw: Taken) -> dict[str, str]:
    """Return the RateLimit headers (draft-ietf-httpapi-ratelimit-headers-10): quota, calls left, seconds until full."""
    quota, per_s = draw.limit.burst, draw.limit.per_s
    whole = math.ceil((quota - draw.left) / per_s)
    return {
        "RateLimit-Policy": f'"caller";q={quota:g};w={math.ceil(quota / per_s)}',
        "RateLimit": f'"caller";r={max(0, draw.left)};t={whole}',
    }


class Buckets:
    """The token buckets, one for each caller, in Valkey.

    While Valkey does not answer, each process allows the whole rate by itself, as too many calls are better than none.
    """

    def __init__(self, url: str) -> None:
        valkey = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )
        self._take = valkey.register_script(TAKE)
        self._not_before = 0.0
        self._here: dict[str, Bucket] = {}
        self._lock = threading.Lock()

    def take(self, caller: str, limit: RateLimit) -> Taken:
        """Take a call from the caller's bucket in Valkey, if it has one left, and return the bucket's state.

        `wait_s` of the state is above 0 if it had none. While Valkey is away, which is logged, the bucket is one of
        this process.
        """
        if time.monotonic() >= self._not_before:
            try:
                wait_ms, left = self._take([f"{CALLER_RATE}:{caller}"], [limit.per_s, limit.burst])
            except (RedisError, OSError) as error:
                self._not_before = time.monotonic() + PAUSE_S
                log.warning("Valkey does not count a request (%r): this process counts alone.", error)
            else:
                return Taken(limit, left, wait_ms / 1000)
        return self._alone(caller, limit)

    def _alone(self, caller: str, limit: RateLimit) -> Taken:
        now = time.monotonic()
        with self._lock:
            if len(self._here) >= MOST_BUCKETS_HERE:
                self._here.clear()
            bucket = self._here.setdefault(caller, Bucket(limit, now))
            wait_s = bucket.take(limit, now)
            return Taken(limit, int(bucket.level), wait_s)


@functools.cache
def buckets() -> Buckets:
    """Return the process' one connection to the shared buckets."""
    return Buckets(settings.REDIS_URL)


class CallerThrottle(BaseThrottle):
    """A throttle that counts each call on its token, else its user, else its address; sets `request.taken`."""

    def allow_request(self, request: Request, view: APIView) -> bool:
        """Take the request from the bucket of its token, else user, else address, and return True.

        Raises TooMany if that bucket is empty.
        """
        if request.auth:
            require_room(request, f"token:{request.auth.pk}", settings.API_REQUESTS_PER_S)
        elif request.user.is_authenticated:
            require_room(request, f"user:{request.user.pk}", settings.API_REQUESTS_PER_S)
        else:
            require_room_for_stranger(request)
        return True


def require_room_for_stranger(request: HttpRequest | Request) -> None:
    """Count a call without valid credentials on its address. Raises TooMany if that has no call left."""
    require_room(request, f"address:{request.META.get('REMOTE_ADDR', '')}", settings.STRANGER_REQUESTS_PER_S)


def require_room(request: HttpRequest | Request, caller: str, per_s: int) -> None:
    """Count a call in the caller's bucket of `per_s` calls a second; 0 means no limit. Raises TooMany with the wait.

    `caller` is the kind and the key, such as `token:7`.
    """
    if not per_s:
        return
    taken = marked(request).taken = buckets().take(caller, RateLimit(per_s, BURST_S * per_s))
    if taken.wait_s:
        kind = caller.partition(":")[0]
        raise TooMany(
            f"Each {kind} may send {counted(per_s, 'request a second', 'requests a second')}: wait, then try again.",
            wait_s=taken.wait_s,
        )
