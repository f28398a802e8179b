"""Replicas: choose the least loaded one that holds the version, and try another only before the first byte."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from serving_client.router.errors import Refusal

# The replica cannot serve this now, but another one may: it is overloaded, starting, or lost the version.
TRY_ANOTHER = {404, 502, 503}


class Upstream:
    """One pool of connections to all replicas, and how many requests each has in flight."""

    def __init__(self, timeout_s: float = 600.0) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=5.0)
        self.in_flight: Counter[str] = Counter()

    async def start(self) -> None:
        """Open the pool inside the running loop."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, auto_decompress=False)

    async def stop(self) -> None:
        """Close the pool."""
        if self._session:
            await self._session.close()

    @asynccontextmanager
    async def post(
        self, replicas: Sequence[str], path: str, body: bytes, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of the first replica that gives one. Raises Refusal 502 when none does."""
        waiting = sorted(replicas, key=lambda url: self.in_flight[url])
        for number, url in enumerate(waiting, start=1):
            response = await self._try(url, path, body, headers)
            if response is None:
                continue
            if response.status in TRY_ANOTHER and number < len(waiting):
                response.release()
                continue
            self.in_flight[url] += 1
            try:
                yield response
            finally:
                self.in_flight[url] -= 1
                response.close()
            return
        raise Refusal(502, "replica_unreachable", "No replica answers. Try again.", retry_after_s=1)

    async def _try(self, url: str, path: str, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse | None:
        """None when the connection failed before an answer began."""
        assert self._session is not None  # noqa: S101 - started by the lifespan
        try:
            return await self._session.post(url + path, data=body, headers=headers)
        except (aiohttp.ClientConnectionError, TimeoutError):
            return None
