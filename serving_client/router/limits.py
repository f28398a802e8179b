"""Requests a second of each project: a token bucket that all routers share in Valkey, and one here while it is away."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable
from typing import cast

import redis.asyncio as redis

from serving_client.router.errors import Refusal
from serving_client.router.patience import Patience
from serving_client.routing import RateLimit

# Level and time (seconds) of a bucket in one hash; Valkey's clock, so that routers need not agree on theirs.
# Returns milliseconds until a token is there; 0 = taken.
TAKE = """
local rate, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local held = redis.call('HMGET', KEYS[1], 'level', 'at')
local level = math.min(burst, (tonumber(held[1]) or burst) + math.max(0, now - (tonumber(held[2]) or now)) * rate)
local wait = 0
if level >= 1 then level = level - 1 else wait = math.ceil((1 - level) / rate * 1000) end
redis.call('HSET', KEYS[1], 'level', tostring(level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil(burst / rate * 1000) + 1000)
return wait
"""


class Bucket:
    """A token bucket of this process alone; `now` in seconds of any steady clock."""

    def __init__(self, limit: RateLimit, now: float) -> None:
        self._level, self._at = float(limit.burst), now

    def take(self, limit: RateLimit, now: float) -> float:
        """Seconds until a token is there; 0 = taken."""
        self._level = min(limit.burst, self._level + (now - self._at) * limit.per_s)
        self._at = now
        if self._level < 1:
            return (1 - self._level) / limit.per_s
        self._level -= 1
        return 0.0


class RateLimits:
    """While Valkey is away each router allows the whole rate: too much for a while rather than nothing."""

    def __init__(self, valkey: redis.Redis) -> None:
        self._take = valkey.register_script(TAKE)
        self._patience = Patience()
        self._here: dict[str, Bucket] = {}

    async def admit(self, project: str, limit: RateLimit | None) -> None:
        """Take a token. Raises Refusal 429 with the time at which there is one."""
        if limit is None:
            return
        wait_ms = await self._shared(project, limit)
        wait_s = wait_ms / 1000 if wait_ms is not None else self._alone(project, limit)
        if wait_s:
            message = f"The project {project} may send {limit.per_s:g} requests a second: wait, or raise its limit."
            raise Refusal(429, "rate_limited", message, retry_after_s=math.ceil(wait_s))

    async def _shared(self, project: str, limit: RateLimit) -> int | None:
        arguments = [limit.per_s, limit.burst]
        return await self._patience.ask(lambda: cast("Awaitable[int]", self._take([f"ah:rate:{project}"], arguments)))

    def _alone(self, project: str, limit: RateLimit) -> float:
        now = time.monotonic()
        return self._here.setdefault(project, Bucket(limit, now)).take(limit, now)
