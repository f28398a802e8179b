"""Rate limits: of each project, of its share of a cluster that was granted to it, and of each API token."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable
from typing import cast

import redis.asyncio as redis

from serving_client.protocol import (
    PROJECT_RATE,
    PROJECT_TOKENS,
    SHARE_RATE,
    SHARE_TOKENS,
    TOKEN_RATE,
    TOKEN_TOKENS,
    RateLimit,
    Share,
    TokenRoute,
)
from serving_client.rate_limiter import CHARGE, TAKE, Bucket
from serving_client.router.errors import Refusal
from serving_client.router.fail_fast import Patience


class RateLimits:
    """Rate limiter shared by all routers through Valkey; while it is away, each router allows the whole rate."""

    def __init__(self, valkey: redis.Redis) -> None:
        self._take, self._charge = valkey.register_script(TAKE), valkey.register_script(CHARGE)
        self._patience = Patience()
        self._here: dict[str, Bucket] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def admit(self, project: str, limit: RateLimit | None, tokens_per_min: float | None) -> None:
        """Take one request, and one token in advance, from the project's limits; no effect without any.

        Raises Refusal 429 with the limit and the seconds to wait.
        """
        if limit and (wait_s := await self._wait_s(f"{PROJECT_RATE}:{project}", limit)):
            raise over_project_limit(f"The project {project} may send {limit.per_s:g} requests a second", wait_s)
        if tokens_per_min and (wait_s := await self._wait_s(f"{PROJECT_TOKENS}:{project}", by_minute(tokens_per_min))):
            raise over_project_limit(f"The project {project} may take {tokens_per_min:,.10g} tokens a minute", wait_s)

    async def admit_token(self, token: TokenRoute) -> None:
        """Take one request, and one token of text in advance, from the API token's own limits; no effect without any.

        Raises Refusal 429 with the limit and the seconds to wait.
        """
        if token.limits is None:
            return
        for name, limit, unit in limits_of(TOKEN_RATE, TOKEN_TOKENS, token.id, token.limits):
            if wait_s := await self._wait_s(name, limit):
                message = f"The token ah_{token.id} is limited to {unit}: slow down, or have an admin raise its limit."
                raise Refusal(429, "token_limit_exceeded", message, retry_after_s=math.ceil(wait_s))

    async def admit_share(self, key: str | None, share: Share | None) -> None:
        """Take one request, and one token in advance, from the project's share of a cluster; no effect without a share.

        Raises Refusal 429 with the seconds to wait if either limit is used up.
        """
        if key is None or share is None:
            return
        for name, limit, unit in limits_of(SHARE_RATE, SHARE_TOKENS, key, share):
            if wait_s := await self._wait_s(name, limit):
                message = f"The project's share of this cluster is {unit}: slow down, or ask its owner for more."
                raise Refusal(429, "share_exceeded", message, retry_after_s=math.ceil(wait_s))

    def spend(
        self, key: str | None, share: Share | None, token: TokenRoute, tokens_per_min: float | None, tokens: int
    ) -> None:
        """Charge an answer's tokens, in the background, to the limits of tokens that share, API token and project have.

        `key` and `share` are those of the cluster's share, None without one; `tokens_per_min` is the project's limit,
        None without one. One token less is charged: it was taken when the request was admitted.
        """
        if key is not None and share is not None:
            self._spend_soon(f"{SHARE_TOKENS}:{key}", share.tokens_per_min, tokens)
        if token.limits is not None:
            self._spend_soon(f"{TOKEN_TOKENS}:{token.id}", token.limits.tokens_per_min, tokens)
        self._spend_soon(f"{PROJECT_TOKENS}:{token.project}", tokens_per_min, tokens)

    def _spend_soon(self, name: str, tokens_per_min: float | None, tokens: int) -> None:
        if tokens_per_min is None or tokens <= 1:
            return
        task = asyncio.create_task(self._spend(name, by_minute(tokens_per_min), tokens - 1))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _spend(self, name: str, limit: RateLimit, tokens: int) -> None:
        arguments = [limit.per_s, limit.burst, tokens]
        if not await self._patience.ask(lambda: cast("Awaitable[int]", self._charge([name], arguments))):
            now = time.monotonic()
            self._here.setdefault(name, Bucket(limit, now)).charge(limit, now, tokens)

    async def _wait_s(self, name: str, limit: RateLimit) -> float:
        """Take one from the bucket and return 0, or return the seconds until it has one."""
        wait_ms = await self._shared(name, limit)
        return wait_ms / 1000 if wait_ms is not None else self._alone(name, limit)

    async def _shared(self, name: str, limit: RateLimit) -> int | None:
        arguments = [limit.per_s, limit.burst]
        answer = await self._patience.ask(lambda: cast("Awaitable[list[int]]", self._take([name], arguments)))
        return answer[0] if answer else None

    def _alone(self, name: str, limit: RateLimit) -> float:
        now = time.monotonic()
        return self._here.setdefault(name, Bucket(limit, now)).take(limit, now)


def over_project_limit(sentence: str, wait_s: float) -> Refusal:
    """Return the refusal of a request over a project's limit; `sentence` says which."""
    return Refusal(429, "rate_limited", f"{sentence}: slow down, or raise its limit.", retry_after_s=math.ceil(wait_s))


def limits_of(rate: str, tokens: str, key: str, limits: Share) -> list[tuple[str, RateLimit, str]]:
    """Return the buckets of these limits as (name, limit, limit in words); none for a limit that is not set.

    A name is the prefix `rate` or `tokens`, and `key`.
    """
    buckets = []
    if limits.requests_per_s is not None:
        per_s = RateLimit(limits.requests_per_s, max(1.0, 2 * limits.requests_per_s))
        buckets.append((f"{rate}:{key}", per_s, f"{limits.requests_per_s:g} requests a second"))
    if limits.tokens_per_min is not None:
        per_min = by_minute(limits.tokens_per_min)
        buckets.append((f"{tokens}:{key}", per_min, f"{limits.tokens_per_min:,.10g} tokens a minute"))
    return buckets


def by_minute(tokens: float) -> RateLimit:
    """Return a limit of so many tokens a minute; the burst is a whole minute's."""
    return RateLimit(tokens / 60, max(1.0, tokens))
