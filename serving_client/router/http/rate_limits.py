"""Rate limits: requests a second of each project."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable
from typing import cast

import redis.asyncio as redis

from serving_client.protocol import PROJECT_RATE, RateLimit
from serving_client.rate_limiter import TAKE, Bucket
from serving_client.router.errors import Refusal
from serving_client.router.fail_fast import Patience


class RateLimits:
    """Rate limiter shared by all routers; while Valkey is away each allows the whole rate, rather than nothing."""

    def __init__(self, valkey: redis.Redis) -> None:
        self._take = valkey.register_script(TAKE)
        self._patience = Patience()
        self._here: dict[str, Bucket] = {}

    async def admit(self, project: str, limit: RateLimit | None) -> None:
        """Take a token of the project's bucket; no effect without a limit.

        Raises Refusal 429 with the seconds to wait.
        """
        if limit is None:
            return
        wait_ms = await self._shared(project, limit)
        wait_s = wait_ms / 1000 if wait_ms is not None else self._alone(project, limit)
        if wait_s:
            message = (
                f"The project {project} may send {limit.per_s:g} requests a second: slow down, or raise its limit."
            )
            raise Refusal(429, "rate_limited", message, retry_after_s=math.ceil(wait_s))

    async def _shared(self, project: str, limit: RateLimit) -> int | None:
        arguments = [limit.per_s, limit.burst]
        key = f"{PROJECT_RATE}:{project}"
        answer = await self._patience.ask(lambda: cast("Awaitable[list[int]]", self._take([key], arguments)))
        return answer[0] if answer else None

    def _alone(self, project: str, limit: RateLimit) -> float:
        now = time.monotonic()
        return self._here.setdefault(project, Bucket(limit, now)).take(limit, now)
