"""Proxying of a completion: select the version, forward the request, stream the answer back, report it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving_client.protocol import RoutingTable, TokenRoute, VersionRoute
from serving_client.router.cache import Entry, ResponseCache, key_of, rule_for
from serving_client.router.errors import Refusal
from serving_client.router.http.bodies import Bodies, read_body
from serving_client.router.http.limits import RateLimits
from serving_client.router.http.response_context import Answer
from serving_client.router.reporting.metrics import Metrics
from serving_client.router.reporting.outcomes import OutcomeReporter
from serving_client.router.reporting.samples import Samples
from serving_client.router.reporting.tracing import begun, ended
from serving_client.router.request_fields import Body, require_fitting
from serving_client.router.resolve import Target, authenticate, is_current, parse, resolve, rewritten, rollout_of
from serving_client.router.table import TableWatcher
from serving_client.router.upstream.cold_start import ColdVersions
from serving_client.router.upstream.replicas import Reply, Upstream
from serving_client.router.upstream.shadow_traffic import Afterwards, captured_for

log = logging.getLogger(__name__)

PASSED_ON = ("Content-Type", "Content-Encoding", "Retry-After")


class CutOff(Exception):
    """A replica broke the connection after the first byte; the message says which one, and how."""


@dataclass
class Proxy:
    """Handler of completions with all the services it needs, created once."""

    watcher: TableWatcher
    cold: ColdVersions
    upstream: Upstream
    reporter: OutcomeReporter
    metrics: Metrics
    cache: ResponseCache
    limits: RateLimits
    samples: Samples

    def __post_init__(self) -> None:
        self.afterwards = Afterwards(self.watcher, self.upstream, self.reporter, self.samples)
        self.bodies = Bodies()

    def table(self) -> RoutingTable:
        """Return the last good routing table. Raises Refusal 503 before there is one, and for one that is too old."""
        if self.watcher.table is None:
            raise Refusal(503, "no_routing_table", "The router has no routing table yet.", retry_after_s=2)
        if self.watcher.age_s() > self.watcher.max_age_s:
            message = "The routing table is too old to be relied on: the control plane has not published for long."
            raise Refusal(503, "stale_table", message, retry_after_s=5)
        return self.watcher.table

    async def complete(self, request: Request) -> Response:
        """Answer a completion or chat completion."""
        began = time.perf_counter()
        token = authenticate(self.table(), request.headers.get("authorization", ""))
        request.state.project = token.project
        await self.limits.admit(token.project, self.table().limits.get(token.project))
        with self.bodies.share() as share:
            body = parse(await read_body(request, share), request.url.path)
            return await self.answered(request, token, body, began)

    async def answered(self, request: Request, token: TokenRoute, body: Body, began: float) -> Response:
        """Select the version, forward the request, and report the answer also when there is none."""
        answer = Answer(resolve(self.table(), token, request.headers, body), uuid.uuid4().hex, began)
        answer.span, answer.trace = begun(request.url.path, request.headers, answer.response_id)
        answer.captured = captured_for(rollout_of(self.table(), answer.target), answer.target, request.url.path, body)
        try:
            require_fitting(body, most_characters_of(self.table(), answer.target))
            payload = rewritten(body, answer.target)
            if cached := await self.cached_answer(request.url.path, body, answer):
                return cached
            forwarding = self.forward(request.url.path, payload, bool(body.get("stream")), answer)
            return await while_present(request, forwarding)
        except ClientDisconnect:
            self.finished(answer)
            raise
        except Refusal as refusal:
            answer.status = refusal.status
            self.finished(answer)
            return refusal.response(answer.headers())

    async def cached_answer(self, path: str, body: Body, answer: Answer) -> Response | None:
        """Return the cached answer of the request, a stream in one piece; None on a miss or if its alias caches none.

        A miss is noted in `answer`, so that the replica's answer is cached.
        """
        rule = rule_for(self.table(), answer.target, body)
        if rule is None:
            return None
        key = key_of(self.table(), answer.target, path, body)
        content = await self.cache.get(key)
        answer.cache = "hit" if content else "miss"
        if content is None:
            answer.entry = Entry(key, rule)
            return None
        answer.status = 200
        answer.is_all(content)
        self.finished(answer)
        media_type = "text/event-stream" if body.get("stream") else "application/json"
        return Response(content, 200, answer.headers(), media_type)

    async def route(self, target: Target) -> VersionRoute:
        """Return the route to replicas that hold the version, waiting for a cold one.

        Raises Refusal: 404 or 503 at once for a version that no replica will hold, 503 or 504 after the wait.
        """
        version = target.version
        route = self.table().versions.get(version)
        if route is None:
            raise Refusal(503, "not_servable", f"No cluster serves the base model of {version}.", retry_after_s=30)
        if route.replicas:
            return route
        self.require_servable(target)
        with self.metrics.load_wait.time():
            table = await self.cold.wait(version, lambda: self.is_wanted(target))
        if table is None and not is_current(self.table(), target):
            raise Refusal(503, "alias_moved", f"{target.alias} was moved in the meantime: try again.", retry_after_s=1)
        self.require_servable(target)
        if table is None:
            raise Refusal(504, "load_timeout", f"{version} is not loaded yet: try again.", retry_after_s=5)
        return table.versions[version]

    def require_servable(self, target: Target) -> None:
        """Check that a replica may hold the version. Raises Refusal: 404 with what to do, 503 behind an alias."""
        route = self.table().versions.get(target.version)
        if route and route.refusal and not route.replicas:
            if target.alias:
                raise Refusal(503, "not_servable", route.refusal, retry_after_s=30)
            raise Refusal(404, "not_servable", route.refusal)

    def is_wanted(self, target: Target) -> bool:
        """Return True while a request should wait for the version to be loaded."""
        route = self.table().versions.get(target.version)
        return is_current(self.table(), target) and not (route and route.refusal)

    async def forward(self, path: str, payload: bytes, is_stream: bool, answer: Answer) -> Response:
        """Forward the request and pass its answer on as it arrives. Raises Refusal 502, 503 or 504."""
        route = await self.route(answer.target)
        headers = {"Content-Type": "application/json", "X-Request-ID": answer.response_id} | answer.trace
        async with AsyncExitStack() as stack:
            reply = await stack.enter_async_context(
                self.upstream.post(route, path, payload, headers, is_stream=is_stream)
            )
            answer.status = reply.response.status
            if is_stream:
                return PassedThrough(reply, answer, stack.pop_all(), self.finished)
        answer.is_all(reply.begun)
        self.finished(answer)
        return Response(reply.begun, answer.status, response_headers(reply.response, answer))

    def finished(self, answer: Answer) -> None:
        """Count, trace, cache and report a finished answer."""
        outcome = answer.outcome()
        self.metrics.answered(outcome)
        self.afterwards.follow(answer.target, answer.captured, outcome)
        if answer.span:
            ended(answer.span, outcome)
        if answer.entry and outcome.status == 200:
            self.cache.keep_soon(answer.entry)


async def while_present(request: Request, work: Coroutine[None, None, Response]) -> Response:
    """Await the work, and cancel it when the client leaves: its replica stops then. Raises ClientDisconnect."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        gone.cancel()
        working.cancel()
        await asyncio.wait((working, gone))


async def disconnected(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def most_characters_of(table: RoutingTable, target: Target) -> int | None:
    """Return the bound of a text for the version; None if it is not known."""
    route = table.versions.get(target.version)
    return route.most_characters if route else None


class PassedThrough(StreamingResponse):
    """Response that streams the replica's chunks; closed and reported however it ends, even if it never began."""

    def __init__(
        self,
        reply: Reply,
        answer: Answer,
        stack: AsyncExitStack,
        finished: Callable[[Answer], None],
    ) -> None:
        super().__init__(self.chunks(reply), reply.response.status, response_headers(reply.response, answer))
        self._answer, self._stack, self._finished = answer, stack, finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, then release the replica and report the answer, whatever happens.

        A CutOff is logged and not raised: the server then closes the connection without ending the answer.
        """
        try:
            async with self._stack:
                await super().__call__(scope, receive, send)
        except CutOff as error:
            # The server closes the connection of an answer without an end.
            log.warning("Answer %s was broken off by its replica: %s", self._answer.response_id, error)
        finally:
            self._finished(self._answer)

    async def chunks(self, reply: Reply) -> AsyncIterator[bytes]:
        """Yield the replica's chunks. Raises CutOff if the replica breaks off: a cut answer must not look whole."""
        self._answer.saw(reply.begun)
        yield reply.begun
        try:
            async for chunk in reply.response.content.iter_any():
                self._answer.saw(chunk)
                yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            self._answer.status = 502
            raise CutOff(f"{reply.response.url}: {error}") from None
        self._answer.is_whole = True


def response_headers(upstream: aiohttp.ClientResponse, answer: Answer) -> dict[str, str]:
    """Return the response headers: the router's, and a few of the replica's."""
    passed_on = {name: upstream.headers[name] for name in PASSED_ON if name in upstream.headers}
    return passed_on | answer.headers()
