"""Replicas: choose the least loaded one that holds the version, and try another only before the first byte."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import aiohttp

from serving_client.router.breaker import Breaker
from serving_client.router.errors import Refusal

# The replica cannot serve this now, but another one may: it lost the version, is overloaded or is starting.
TRY_ANOTHER = {404, 502, 503}
# Below the 5 s after which engines close an idle connection: a request on a closing one would be lost.
KEEPALIVE_S = 3.0
AT_ONCE_BYTES = 2**18


class Upstream:
    """One pool of connections to all replicas, and how many requests each has in flight."""

    def __init__(self, timeout_s: float = 600.0) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=5.0)
        self.in_flight: Counter[str] = Counter()
        self.breaker = Breaker()

    async def start(self) -> None:
        """Open the pool inside the running loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Bytes go through as they come: nothing may be compressed on the way.
            skip_auto_headers=["Accept-Encoding"],
        )

    async def stop(self) -> None:
        """Close the pool."""
        if self._session:
            await self._session.close()

    @asynccontextmanager
    async def post(
        self, replicas: Sequence[str], path: str, body: bytes, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of the first replica that gives one. Raises Refusal 502 when none does, 504 after timeout_s."""
        for url in self.least_loaded(replicas):
            with self._counted(url):
                response = await self._try(url, path, body, headers)
                if response is None:
                    continue
                try:
                    self._judge(url, response.status)
                    if response.status in TRY_ANOTHER:
                        continue
                    if response.status >= 500:
                        raise Refusal(502, "replica_failed", "The replica failed on this request.", retry_after_s=1)
                    yield response
                    return
                finally:
                    response.close()
        raise Refusal(502, "no_replica_answers", "No replica answers for this version: try again.", retry_after_s=1)

    def least_loaded(self, replicas: Sequence[str]) -> list[str]:
        """By requests in flight, those that keep failing last; equals in random order, so that all are used."""
        shuffled = random.sample(replicas, len(replicas))
        return sorted(shuffled, key=lambda url: (self.breaker.is_open(url), self.in_flight[url]))

    def _judge(self, url: str, status: int) -> None:
        """404 and 4xx are answers of a replica that works."""
        if status >= 500:
            self.breaker.failed(url)
        else:
            self.breaker.answered(url)

    @contextmanager
    def _counted(self, url: str) -> Iterator[None]:
        self.in_flight[url] += 1
        try:
            yield
        finally:
            self.in_flight[url] -= 1

    async def _try(self, url: str, path: str, body: bytes, headers: dict[str, str]) -> aiohttp.ClientResponse | None:
        """None when no connection came about. Raises Refusal 502 when it broke after, 504 after timeout_s."""
        assert self._session is not None  # noqa: S101 - started by the lifespan
        self.breaker.trying(url)
        try:
            # Written in pieces when large, so that other requests go on meanwhile.
            payload = body if len(body) <= AT_ONCE_BYTES else io.BytesIO(body)
            return await self._session.post(url + path, data=payload, headers=headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.breaker.failed(url)
            refuse_if_sent(error)
            return None


def refuse_if_sent(error: Exception) -> None:
    """Returns when no connection came about. Raises Refusal 504 for a slow replica, 502 for one that broke off."""
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return
    if isinstance(error, TimeoutError):
        raise Refusal(504, "replica_too_slow", "The replica gave no answer in time.", retry_after_s=5)
    # The request may have killed the replica: sent on, it would kill them all.
    raise Refusal(502, "replica_broke_off", "The replica broke off its answer.", retry_after_s=1)
