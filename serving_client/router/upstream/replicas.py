"""Calls to replicas: one that holds the version, and another only before the first byte."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from serving_client.protocol import PREFIX_AFFINITY, VersionRoute
from serving_client.router.errors import Refusal
from serving_client.router.request_fields import EMBEDDINGS, RESPONSES
from serving_client.router.upstream.breaker import Breaker
from serving_client.router.upstream.engine_access import EngineKeys
from serving_client.router.upstream.engine_addresses import EngineAddresses, NotListed
from serving_client.router.upstream.replica_choice import by_prefix, least_loaded
from serving_client.router.upstream.replica_load import ReplicaLoads
from serving_client.router.upstream.whole_answers import AnswerShare, WholeAnswers

log = logging.getLogger(__name__)

# The replica cannot serve this now, but another one may: it lost the version, is overloaded or is starting.
TRY_ANOTHER = {404, 502, 503}
# Below the 5 s after which engines close an idle connection: a request on a closing one would be lost.
KEEPALIVE_S = 3.0
# Not every engine has these paths; one that has them names the missing version in its 404.
OPTIONAL = {
    EMBEDDINGS: ("no_embeddings", "The engine of this version does not support embeddings."),
    RESPONSES: ("no_responses", "The engine of this version has no responses: use /v1/chat/completions."),
}
LACKS_VERSION = b"does not exist"
AT_ONCE_BYTES = 2**18
# The request itself may have killed the replica that broke off: retry it on one more replica, not on all.
MOST_BROKEN = 2
NOBODY = ("no_replica_answers", "No replica responds for this version: try again.")
BROKE_OFF = ("replica_broke_off", "The replica broke off its answer.")


@dataclass(frozen=True)
class Reply:
    """A response that has begun: `begun` is its whole body, counted in `share`, or the first chunk of a stream."""

    response: aiohttp.ClientResponse
    begun: bytes
    share: AnswerShare


class NotReached(Exception):
    """The connection could not be opened."""


class Untaken(Refusal):
    """No replica has taken the request: none could be reached, or those that were lack the version."""


class BrokeOff(Exception):
    """The connection broke before the first byte of the answer."""


class Upstream:
    """Connection pool for all replicas, with the load and circuit breaker of each; call `start` first.

    `engine_hosts` lists where replicas may be. `timeout_s` bounds a request with its whole answer.
    """

    def __init__(self, engine_hosts: Sequence[str], keys: EngineKeys, timeout_s: float = 600.0) -> None:
        self._keys = keys
        self._addresses = EngineAddresses(engine_hosts)
        self._session: aiohttp.ClientSession | None = None
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=5.0)
        self.loads = ReplicaLoads()
        self.answers = WholeAnswers()
        self.breaker = Breaker()

    async def start(self) -> None:
        """Open the pool of connections; call it inside the running event loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, resolver=self._addresses),
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            # Bytes are passed on unchanged, so replicas must not compress them, and nothing unfolds here if they do.
            skip_auto_headers=["Accept-Encoding"],
            auto_decompress=False,
        )

    async def stop(self) -> None:
        """Close the pool."""
        if self._session:
            await self._session.close()
            await self._addresses.close()

    @asynccontextmanager
    async def post(
        self,
        route: VersionRoute,
        path: str,
        body: bytes,
        headers: dict[str, str],
        *,
        project: str,
        is_stream: bool,
        prefix: Callable[[], str] | None = None,
    ) -> AsyncIterator[Reply]:
        """Ask the replicas of the route one after the other; yield the reply of the first that gives one.

        The least loaded is asked first or, where the route asks for it, the one that `prefix()`, the beginning of the
        prompt, selects; spare ones come last. The next one is asked if a replica cannot be reached or answers 404, 502
        or 503, and after one broken connection, but not after MOST_BROKEN. A whole answer, not a stream, is held in
        memory and counts for its `project`. Raises Refusal 502 if none gives a reply, one fails otherwise or an answer
        is too large, 503 if too many answers are held, 504 after timeout_s, and 404 for a path that the engine lacks;
        Untaken if none of them has begun to work on it.
        """
        key = f"{route.digest}|{prefix()}" if prefix and route.routing == PREFIX_AFFINITY else None
        attempts_left, is_untaken = MOST_BROKEN, True
        for url in (*self.ordered(route.replicas, key), *self.ordered(route.spare, key)):
            with self.loads.counted(url):
                try:
                    with self.loads.reading_prompt(url, is_stream=is_stream):
                        share = self.answers.share(project)
                        reply = await self._ask(url, path, body, headers, share, is_stream=is_stream)
                except NotReached:
                    continue
                except BrokeOff:
                    attempts_left, is_untaken = attempts_left - 1, False
                    if attempts_left:
                        continue
                    break
                is_passed_on = False
                try:
                    self._judge(url, reply.response.status)
                    if path in OPTIONAL and reply.response.status == 404 and LACKS_VERSION not in reply.begun:
                        raise Refusal(404, *OPTIONAL[path])
                    if reply.response.status in TRY_ANOTHER:
                        is_untaken &= reply.response.status == 404
                        continue
                    if not 200 <= reply.response.status < 300 and not 400 <= reply.response.status < 500:
                        raise Refusal(502, "replica_failed", "The replica failed on this request.", retry_after_s=1)
                    is_passed_on = True
                    yield reply
                    return
                finally:
                    reply.response.close()
                    if not is_passed_on:
                        reply.share.release()
        if is_untaken:
            raise Untaken(502, *NOBODY, retry_after_s=1)
        raise Refusal(502, *(NOBODY if attempts_left == MOST_BROKEN else BROKE_OFF), retry_after_s=1)

    def ordered(self, replicas: Sequence[str], key: str | None) -> list[str]:
        """Return the replicas in the order in which they are asked, by the key of a prompt if there is one."""
        if key is None or len(replicas) < 2:
            return least_loaded(replicas, self.loads, self.breaker.is_open)
        return by_prefix(key, replicas, self.loads, self.breaker.is_open)

    def _judge(self, url: str, status: int) -> None:
        """Record a status for the breaker: 5xx and 3xx are failures, 404 and other 4xx come from a working replica."""
        if status >= 500 or 300 <= status < 400:
            self.breaker.failed(url)
        else:
            self.breaker.answered(url)

    async def _ask(
        self, url: str, path: str, body: bytes, headers: dict[str, str], share: AnswerShare, *, is_stream: bool
    ) -> Reply:
        """Send the request to one replica. Raises NotReached, BrokeOff, Refusal 504, and those of `whole`."""
        assert self._session is not None  # noqa: S101 - started by the lifespan
        if not self._addresses.may_be_asked(url):
            log.error("%s is not among --engine-hosts: it is not asked.", url)
            raise NotReached
        self.breaker.trying(url)
        try:
            # Written in pieces when large, so that other requests go on meanwhile.
            payload = body if len(body) <= AT_ONCE_BYTES else io.BytesIO(body)
            # An engine that redirects would choose where the prompt goes.
            sent = headers | self._keys.headers(url)
            response = await self._session.post(url + path, data=payload, headers=sent, allow_redirects=False)
            return await begun(response, share, is_stream=is_stream)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.breaker.failed(url)
            raise verdict(error) from None


async def begun(response: aiohttp.ClientResponse, share: AnswerShare, *, is_stream: bool) -> Reply:
    """Read the first chunk or the whole body; on an error close the connection and raise the error again."""
    try:
        content = await (response.content.readany() if is_stream else whole(response, share))
        return Reply(response, content, share)
    except BaseException:
        response.close()
        share.release()
        raise


async def whole(response: aiohttp.ClientResponse, share: AnswerShare) -> bytes:
    """Read and return the whole body. Raises Refusal 502 for one that is too large, and 503 beside too many others."""
    parts = []
    async for part in response.content.iter_any():
        share.take(len(part))
        parts.append(part)
    return b"".join(parts)


def verdict(error: Exception) -> Exception:
    """Return the exception that stands for a connection error: NotReached, BrokeOff or, for a timeout, Refusal 504.

    An address that is not listed is logged as an error.
    """
    if isinstance(cause := getattr(error, "os_error", None), NotListed):
        log.error("%s", cause)
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        return NotReached()
    if isinstance(error, TimeoutError):
        return Refusal(504, "replica_too_slow", "The replica did not respond in time.", retry_after_s=5)
    return BrokeOff()
