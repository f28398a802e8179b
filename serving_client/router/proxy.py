"""One completion: decide, forward, stream back, report."""

from __future__ import annotations

import hashlib
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import aiohttp
import orjson
import redis.asyncio as redis
from redis.exceptions import RedisError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serving_client.router.errors import Refusal
from serving_client.router.metrics import Metrics
from serving_client.router.outcomes import Outcome, OutcomeReporter
from serving_client.router.resolve import Body, Target, authenticate, parse, resolve
from serving_client.router.table import TableWatcher
from serving_client.router.upstream import Upstream
from serving_client.routing import RoutingTable

MAX_BODY_BYTES = 4 * 2**20
WANTS = "ah:wants"
USAGE = re.compile(rb'"(prompt_tokens|completion_tokens)":\s*(\d+)')
TAIL_BYTES = 4096


@dataclass
class Answered:
    """What is known of an answer while it passes through; times from time.perf_counter()."""

    target: Target
    response_id: str
    began: float
    status: int = 0
    first_byte: float | None = None
    tail: bytes = b""

    def headers(self) -> dict[str, str]:
        shown = {
            "X-Adapter-Version": self.target.version,
            "X-Rollout-Arm": self.target.arm,
            "X-Response-ID": self.response_id,
            "X-Cache": "bypass",
        }
        if self.target.arm != "none" and not self.target.is_sticky:
            shown["X-Rollout-Sticky"] = "false"
        return shown

    def saw(self, chunk: bytes) -> None:
        if self.first_byte is None:
            self.first_byte = time.perf_counter()
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]

    def outcome(self) -> Outcome:
        usage = {name.decode(): int(count) for name, count in USAGE.findall(self.tail)}
        ttft = None if self.first_byte is None else (self.first_byte - self.began) * 1000
        unit = self.target.unit
        return Outcome(
            response_id=self.response_id,
            at=time.time(),
            project=self.target.project,
            alias=self.target.alias,
            version=self.target.version,
            arm=self.target.arm,
            sticky=self.target.is_sticky,
            unit=hashlib.sha256(unit.encode()).hexdigest() if unit else None,
            status=self.status,
            ttft_ms=ttft,
            total_ms=(time.perf_counter() - self.began) * 1000,
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
        )


class Proxy:
    """Everything that a request needs, made once."""

    def __init__(
        self,
        watcher: TableWatcher,
        upstream: Upstream,
        reporter: OutcomeReporter,
        metrics: Metrics,
        valkey: redis.Redis,
        load_deadline_s: float,
    ) -> None:
        self.watcher = watcher
        self.upstream = upstream
        self.reporter = reporter
        self.metrics = metrics
        self._valkey = valkey
        self._load_deadline_s = load_deadline_s
        self._asked: dict[str, float] = {}

    def table(self) -> RoutingTable:
        """The last good table. Raises Refusal 503 before there is one."""
        if self.watcher.table is None:
            raise Refusal(503, "no_routing_table", "The router has no routing table yet.", retry_after_s=2)
        return self.watcher.table

    async def complete(self, request: Request) -> Response:
        """Answer a completion or chat completion."""
        began = time.perf_counter()
        token = authenticate(self.table(), request.headers.get("authorization", ""))
        body = parse(await read_body(request))
        answered = Answered(resolve(self.table(), token, request.headers, body), uuid.uuid4().hex, began)
        try:
            replicas = await self.replicas(answered.target.version)
            return await self.forward(request.url.path, body, replicas, answered)
        except Refusal as refusal:
            answered.status = refusal.status
            self.finished(answered)
            response = refusal.response()
            response.headers.update(answered.headers())
            return response

    async def replicas(self, version: str) -> tuple[str, ...]:
        """Replicas that hold the version; a cold one is asked for and waited for. Raises Refusal 504."""
        if route := self.table().versions.get(version):
            if route.replicas:
                return route.replicas
            await self.want(version)
            if table := await self.watcher.wait_for_replica(version, self._load_deadline_s):
                return table.versions[version].replicas
        raise Refusal(504, "load_timeout", f"{version} is not loaded yet: try again.", retry_after_s=5)

    async def want(self, version: str) -> None:
        """Ask for the load once for all who wait."""
        if time.monotonic() - self._asked.get(version, -self._load_deadline_s) < self._load_deadline_s / 2:
            return
        self._asked[version] = time.monotonic()
        try:
            await self._valkey.xadd(WANTS, {"version": version}, maxlen=1000, approximate=True)
        except (RedisError, OSError):
            del self._asked[version]

    async def forward(self, path: str, body: Body, replicas: tuple[str, ...], answered: Answered) -> Response:
        """Send the request on and hand its answer through as it comes."""
        payload = orjson.dumps({**body, "model": answered.target.version})
        stack = AsyncExitStack()
        headers = {"Content-Type": "application/json", "X-Request-ID": answered.response_id}
        upstream = await stack.enter_async_context(self.upstream.post(replicas, path, payload, headers))
        answered.status = upstream.status
        passed = answered.headers()
        kind = upstream.headers.get("Content-Type", "application/json")
        if body.get("stream"):
            chunks = self.chunks(stack, upstream, answered)
            return StreamingResponse(chunks, upstream.status, passed, media_type=kind)
        async with stack:
            content = await whole(upstream)
        answered.saw(content)
        self.finished(answered)
        return Response(content, upstream.status, passed, media_type=kind)

    async def chunks(
        self, stack: AsyncExitStack, upstream: aiohttp.ClientResponse, answered: Answered
    ) -> AsyncIterator[bytes]:
        """The stream, chunk by chunk; it is reported when it ends, however it ends."""
        try:
            async with stack:
                async for chunk in upstream.content.iter_any():
                    answered.saw(chunk)
                    yield chunk
        finally:
            self.finished(answered)

    def finished(self, answered: Answered) -> None:
        """Count and report the answer."""
        outcome, target = answered.outcome(), answered.target
        labels = (target.alias or "", target.version, target.arm)
        self.metrics.requests.labels(*labels, str(outcome.status)).inc()
        self.metrics.total.labels(*labels).observe(outcome.total_ms / 1000)
        if outcome.ttft_ms is not None:
            self.metrics.first_byte.labels(*labels).observe(outcome.ttft_ms / 1000)
        self.reporter.report(outcome)


async def whole(upstream: aiohttp.ClientResponse) -> bytes:
    """All bytes of an answer. Raises Refusal 502 when the replica breaks off."""
    try:
        return await upstream.read()
    except (aiohttp.ClientError, TimeoutError):
        raise Refusal(502, "replica_broke_off", "The replica broke off its answer. Try again.") from None


async def read_body(request: Request) -> bytes:
    """The body, counted while it arrives. Raises Refusal 413."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise Refusal(413, "body_too_large", "The body is over 4 MB.")
        parts.append(part)
    return b"".join(parts)
