"""Proxying of a completion: select the version, forward the request, stream the answer back, report it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving_client.protocol import RoutingTable, Share, TokenRoute, VersionRoute
from serving_client.router.errors import Refusal
from serving_client.router.http.engine_errors import as_openai
from serving_client.router.http.rate_limits import RateLimits
from serving_client.router.http.request_bodies import Bodies, read_body
from serving_client.router.http.response_context import Answer
from serving_client.router.http.stream_usage import StreamReader, counted, is_counted, is_refused, visible
from serving_client.router.reporting.judge_samples import Samples
from serving_client.router.reporting.metrics import Metrics
from serving_client.router.reporting.outcomes import OutcomeReporter
from serving_client.router.reporting.tracing import begun, ended
from serving_client.router.reporting.usage import tokens_of_question
from serving_client.router.request_fields import EMBEDDINGS, Body, require_fitting
from serving_client.router.resolve import Target, authenticate, is_current, parse, resolve, rewritten, rollout_of
from serving_client.router.response_cache import Entry, ResponseCache, key_of, rule_for
from serving_client.router.table_follower import TableWatcher
from serving_client.router.upstream.cold_start import ColdVersions
from serving_client.router.upstream.replica_choice import prefix_of
from serving_client.router.upstream.replicas import Reply, Untaken, Upstream, whole
from serving_client.router.upstream.shadow_traffic import Afterwards, captured_for
from serving_client.router.upstream.whole_answers import WholeAnswer

log = logging.getLogger(__name__)

PASSED_ON = ("Content-Type", "Content-Encoding", "Retry-After")


class CutOff(Exception):
    """A replica broke the connection after the first byte; the message says which one, and how."""


@dataclass
class Proxy:
    """The handler of completions: it authenticates, chooses the version, asks a replica, and reports. Created once."""

    watcher: TableWatcher
    cold: ColdVersions
    upstream: Upstream
    reporter: OutcomeReporter
    metrics: Metrics
    cache: ResponseCache
    limits: RateLimits
    samples: Samples
    other_holder_s: float

    def __post_init__(self) -> None:
        self.afterwards = Afterwards(self.watcher, self.upstream, self.reporter, self.samples)
        self.bodies = Bodies()

    def table(self) -> RoutingTable:
        """Return the last good routing table. Raises Refusal 503 before there is one, and for one that is too old."""
        if self.watcher.table is None:
            raise Refusal(503, "no_routing_table", "The router has no routing table yet.", retry_after_s=2)
        if self.watcher.age_s() > self.watcher.max_age_s:
            message = (
                "The routing table is too old to be relied on: the control plane has not published one for a long time."
            )
            raise Refusal(503, "stale_table", message, retry_after_s=5)
        return self.watcher.table

    async def complete(self, request: Request) -> Response:
        """Answer a completion: check the token, the rates of token and project, and the body; then forward it.

        Raises Refusal if one of these checks fails or no version can be selected.
        """
        began = time.perf_counter()
        token = authenticate(self.table(), request.headers.get("authorization", ""))
        request.state.project = token.project
        await self.limits.admit_token(token)
        table = self.table()
        per_s, per_min = table.limits.get(token.project), table.tokens_per_min.get(token.project)
        await self.limits.admit(token.project, per_s, per_min)
        with self.bodies.share(token.project) as share:
            raw = await read_body(request, share)
            share.unfold(raw)
            body = parse(raw, request.url.path)
            return await self.answered(request, token, body, began)

    async def answered(self, request: Request, token: TokenRoute, body: Body, began: float) -> Response:
        """Select the version, answer from the cache or forward the request, and report the answer, refusals included.

        `began` is the time of time.perf_counter() at which the request came. Raises Refusal if no version can be
        selected, and ClientDisconnect if the client leaves; later refusals become the returned response.
        """
        answer = Answer(resolve(self.table(), token, request.headers, body), token, request.state.id, began)
        answer.question_tokens = tokens_of_question(body)
        answer.has_text = request.url.path != EMBEDDINGS
        answer.span, answer.trace = begun(request.url.path, request.headers, answer.response_id)
        answer.captured = captured_for(rollout_of(self.table(), answer.target), answer.target, request.url.path, body)
        try:
            require_fitting(body, most_characters_of(self.table(), answer.target))
            await self.limits.admit_share(*self.share_of(answer.target))
            if cached := await self.cached_answer(request.url.path, body, answer):
                return cached
            return await while_present(request, self.forward(request.url.path, body, answer))
        except ClientDisconnect:
            self.finished(answer)
            raise
        except Refusal as refusal:
            answer.status = refusal.status
            self.finished(answer)
            return refusal.response(answer.headers())

    async def cached_answer(self, path: str, body: Body, answer: Answer) -> Response | None:
        """Return the cached answer of the request, a stream in one piece; None on a miss or if its alias caches none.

        A hit is reported. A miss is noted in `answer`, so that the replica's answer is stored.
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
        content = visible(content) if is_counted(path, body) else content
        return Response(content, 200, answer.headers(), media_type)

    async def route(self, answer: Answer, until: float | None = None) -> VersionRoute:
        """Return the route to replicas that hold the version, waiting for a cold one, which is noted in the answer.

        `until` (of time.monotonic()) is the last moment to wait, if that is before the deadline of a load. Raises
        Refusal: 404 or 503 at once for a version that no replica will hold, 503 or 504 after the wait.
        """
        target, version = answer.target, answer.target.version
        route = self.table().versions.get(version)
        if route is None:
            raise Refusal(503, "not_servable", f"No cluster serves the base model of {version}.", retry_after_s=30)
        if route.replicas:
            return route
        self.require_servable(target)
        answer.is_cold = True
        with self.metrics.load_wait.time():
            table = await self.cold.wait(version, lambda: self.is_wanted(target), until)
        if table is None and not is_current(self.table(), target):
            raise Refusal(503, "alias_moved", f"{target.alias} was moved in the meantime: try again.", retry_after_s=1)
        self.require_servable(target)
        if table is None:
            raise Refusal(504, "load_timeout", f"{version} is not loaded yet: try again.", retry_after_s=5)
        return table.versions[version]

    def require_servable(self, target: Target) -> None:
        """Raise Refusal if no replica holds the version and the table says that none will.

        It is 503 if the request named an alias, else 404; both say what to do.
        """
        route = self.table().versions.get(target.version)
        if route and route.refusal and not route.replicas:
            if target.alias:
                raise Refusal(503, "not_servable", route.refusal, retry_after_s=30)
            raise Refusal(404, "not_servable", route.refusal)

    def is_wanted(self, target: Target) -> bool:
        """Return True while a request should wait for the version to be loaded.

        It should as long as the alias serves the version and the table does not say that no replica will hold it.
        """
        route = self.table().versions.get(target.version)
        return is_current(self.table(), target) and not (route and route.refusal)

    async def forward(self, path: str, body: Body, answer: Answer) -> Response:
        """Forward the request and return its answer, a stream while it arrives.

        An engine that refuses to count a stream's tokens is asked again without that option. Raises the Refusals of
        `rewritten`, `route` and `Upstream.post`.
        """
        asks_for_counts = is_counted(path, body)
        payload = rewritten(counted(body) if asks_for_counts else body, answer.target)
        headers = {"Content-Type": "application/json", "X-Request-ID": answer.response_id} | answer.trace
        is_stream = bool(body.get("stream"))
        async with AsyncExitStack() as stack:
            prefix = partial(prefix_of, body)
            post = partial(
                self.upstream.post,
                path=path,
                headers=headers,
                project=answer.target.project,
                is_stream=is_stream,
                prefix=prefix,
            )
            reply = await self.reply_of_holder(
                answer, lambda route: stack.enter_async_context(post(route, body=payload))
            )
            if asks_for_counts and is_refused(reply.response.status, reply.begun):
                await stack.aclose()
                route, payload = await self.route(answer), rewritten(body, answer.target)
                reply = await stack.enter_async_context(post(route, body=payload))
            answer.status = reply.response.status
            if answer.status >= 400:
                return await self.failed(reply, answer, is_stream)
            if is_stream:
                reader = StreamReader(hides_usage=asks_for_counts) if is_events(reply.response) else None
                return PassedThrough(reply, reader, answer, stack.pop_all(), self.finished)
        answer.is_all(reply.begun)
        self.finished(answer)
        return WholeAnswer(reply.begun, answer.status, response_headers(reply.response, answer), reply.share)

    async def reply_of_holder(self, answer: Answer, ask: Callable[[VersionRoute], Awaitable[Reply]]) -> Reply:
        """Return the reply of a holder of the version; while none takes the request, ask those of each newer table.

        `ask` sends the request to the replicas of a route, and raises Untaken if none takes it. A replica that was
        killed, drained or moved is in the table until the control loop has seen it. Raises the Refusals of `ask` and
        `route`; Untaken only once `other_holder_s` have passed.
        """
        until = time.monotonic() + self.other_holder_s
        table, route = self.table(), await self.route(answer)
        while True:
            try:
                return await ask(route)
            except Untaken:
                if not await self.watcher.wait_for_newer(table, until - time.monotonic()):
                    raise
            table, route = self.table(), await self.route(answer, until)

    async def failed(self, reply: Reply, answer: Answer, is_stream: bool) -> Response:
        """Return the engine's error as a response in OpenAI's form, and report it."""
        content = reply.begun
        if is_stream:
            # What has arrived of a refusal is said even if its connection breaks.
            with suppress(aiohttp.ClientError, TimeoutError):
                content += await whole(reply.response, reply.share)
        answer.is_all(content)
        self.finished(answer)
        headers = response_headers(reply.response, answer) | {"Content-Type": "application/json"}
        return Response(as_openai(answer.status, content), answer.status, headers)

    def share_of(self, target: Target) -> tuple[str | None, Share | None]:
        """Return the key and the limits of the project's share of the cluster that serves the version.

        Both are None if the version is not served under such a share.
        """
        table = self.watcher.table
        route = table.versions.get(target.version) if table else None
        key = route.share if route else None
        return key, table.shares.get(key) if table and key else None

    def finished(self, answer: Answer) -> None:
        """Finish an answer: charge its tokens, update metrics and trace, report it, and cache a 200 that may be cached.

        Also starts what the answer was captured for: its checks, or a copy of its request to the candidate. A hit of
        the cache is not charged. Token counts that had to be estimated are logged.
        """
        outcome = answer.outcome()
        if outcome.cache != "hit":
            spent = outcome.prompt_tokens + outcome.completion_tokens
            per_min = self.watcher.table.tokens_per_min.get(answer.token.project) if self.watcher.table else None
            self.limits.spend(*self.share_of(answer.target), answer.token, per_min, spent)
        self.metrics.answered(outcome)
        if outcome.tokens_estimated and answer.is_whole:
            log.warning("The engine of %s sends no counts of tokens: they are estimated.", outcome.version)
        self.afterwards.follow(answer.target, answer.captured, outcome)
        if answer.span:
            ended(answer.span, outcome)
        if answer.entry and outcome.status == 200:
            self.cache.keep_soon(answer.entry)


async def while_present(request: Request, work: Coroutine[None, None, Response]) -> Response:
    """Await the work and return its response; if the client leaves first, cancel the work, so that the replica stops.

    Raises ClientDisconnect if the client left first.
    """
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
    """Return the most characters of a text that fit the version's context; None if that is not known."""
    route = table.versions.get(target.version)
    return route.most_characters if route else None


class PassedThrough(StreamingResponse):
    """Response that streams the replica's chunks; closed and reported however it ends, even if it never began."""

    def __init__(
        self,
        reply: Reply,
        reader: StreamReader | None,
        answer: Answer,
        stack: AsyncExitStack,
        finished: Callable[[Answer], None],
    ) -> None:
        super().__init__(self.chunks(reply, reader), reply.response.status, response_headers(reply.response, answer))
        self._answer, self._reader, self._stack, self._finished = answer, reader, stack, finished

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
            if self._reader and not self._answer.is_whole:
                self._answer.stopped(self._reader)
            self._finished(self._answer)

    async def chunks(self, reply: Reply, reader: StreamReader | None) -> AsyncIterator[bytes]:
        """Yield what the client may see of the replica's chunks, and note them in the answer.

        Raises CutOff if the replica breaks off, so that a cut answer does not look whole.
        """
        try:
            async for chunk in arriving(reply):
                self._answer.saw(chunk)
                if seen := reader.read(chunk) if reader else chunk:
                    yield seen
        except (aiohttp.ClientError, TimeoutError) as error:
            self._answer.status = 502
            raise CutOff(f"{reply.response.url}: {error}") from None
        if reader is None:
            self._answer.is_whole = True
            return
        self._answer.streamed(reader)
        if rest := reader.end():
            yield rest


async def arriving(reply: Reply) -> AsyncIterator[bytes]:
    """Yield the chunks of a stream, the one that has arrived already first."""
    yield reply.begun
    async for chunk in reply.response.content.iter_any():
        yield chunk


def is_events(response: aiohttp.ClientResponse) -> bool:
    """Return True for an uncompressed answer of server-sent events."""
    return response.content_type == "text/event-stream" and "Content-Encoding" not in response.headers


def response_headers(upstream: aiohttp.ClientResponse, answer: Answer) -> dict[str, str]:
    """Return the response headers: the router's, and of the replica's those named in PASSED_ON."""
    passed_on = {name: upstream.headers[name] for name in PASSED_ON if name in upstream.headers}
    return passed_on | answer.headers()
