"""ASGI application of the router: routes and lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from pathlib import Path

import orjson
import redis.asyncio as redis
from prometheus_client import generate_latest
from prometheus_client.registry import Collector
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from serving_client.protocol import RoutingTable
from serving_client.router.errors import Refusal
from serving_client.router.http.host_header import LOOPBACK, KnownHosts
from serving_client.router.http.model_list import find_model, model_list
from serving_client.router.http.proxy import Proxy
from serving_client.router.http.rate_limits import RateLimits
from serving_client.router.http.request_ids import HEADER, RequestIds
from serving_client.router.reporting.judge_samples import Samples
from serving_client.router.reporting.metrics import CLIENT_CLOSED, Metrics, OfProject
from serving_client.router.reporting.outcomes import OutcomeReporter
from serving_client.router.reporting.spool import Spool
from serving_client.router.request_fields import ALLOWED
from serving_client.router.resolve import authenticate, known_token
from serving_client.router.response_cache import ResponseCache
from serving_client.router.table_follower import MAX_AGE_S, TableWatcher
from serving_client.router.upstream.cold_start import ColdVersions
from serving_client.router.upstream.engine_access import EngineKeys
from serving_client.router.upstream.replicas import Upstream

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Settings of the router, from its command line.

    Without a `metrics_token` /metrics names no alias; without a `secret` no sealed API key of an engine can be opened;
    without a `spool` reports wait in memory while Valkey is away. `other_holder_s`: for so long a request that no
    holder of its version takes waits for a table that names another; None: as long as for a load.
    """

    redis_url: str
    snapshot: Path
    spool: Path | None = None
    load_deadline_s: float = 30.0
    hosts: tuple[str, ...] = LOOPBACK
    table_max_age_s: float = MAX_AGE_S
    metrics_token: str | None = None
    engine_hosts: tuple[str, ...] = LOOPBACK
    secret: str = ""
    other_holder_s: float | None = None


def make_app(settings: Settings) -> Starlette:
    """Return the router's application; it follows the routing table at `settings.redis_url` while it runs."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        valkey = connect(settings.redis_url)
        watcher = TableWatcher(valkey, settings.snapshot, settings.table_max_age_s)
        cold = ColdVersions(valkey, watcher, settings.load_deadline_s)
        reporter = OutcomeReporter(valkey, Spool(settings.spool) if settings.spool else None)
        parts = (
            Upstream(settings.engine_hosts, EngineKeys(watcher, settings.secret)),
            reporter,
            Metrics(),
            ResponseCache(valkey),
            RateLimits(valkey),
            Samples(valkey),
        )
        holder_s = settings.load_deadline_s if settings.other_holder_s is None else settings.other_holder_s
        app.state.proxy = Proxy(watcher, cold, *parts, holder_s)
        app.state.metrics_token = settings.metrics_token
        await app.state.proxy.upstream.start()
        async with running(watcher.run()), running(reporter.run()):
            yield
        await app.state.proxy.afterwards.drain()
        await reporter.flush()
        await app.state.proxy.upstream.stop()
        await valkey.aclose()

    routes = [
        *(Route(path, complete, methods=["POST"]) for path in ALLOWED),
        Route("/v1/models", models),
        Route("/v1/models/{name}", one_model),
        Route("/v1/models/{owner}/{name:path}", one_model),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
    ]
    handlers = {HTTPException: unknown, Refusal: refused, ClientDisconnect: client_left, 500: broken}
    around = [Middleware(RequestIds), Middleware(KnownHosts, hosts=settings.hosts)]
    app = Starlette(routes=routes, lifespan=lifespan, middleware=around, exception_handlers=handlers)  # type: ignore[arg-type]
    app.router.redirect_slashes = False
    return app


def connect(url: str) -> redis.Redis:
    """Return a client of Valkey that waits 5 seconds and retries once, for connections gone stale in the pool."""
    return redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=5.0, retry=Retry(NoBackoff(), 1))


@contextlib.asynccontextmanager
async def running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run endless work in the background of the block and cancel it at the end.

    If a bug ends it, that is logged at once.
    """
    task = asyncio.create_task(work)
    task.add_done_callback(tell_death)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def tell_death(task: asyncio.Task[None]) -> None:
    """Log as critical that a background task has ended; a cancelled one is not logged."""
    if not task.cancelled():
        log.critical("%s ended: restart the router.", task.get_coro(), exc_info=task.exception())


def proxy_of(request: Request) -> Proxy:
    """Return the application's proxy."""
    proxy: Proxy = request.app.state.proxy
    return proxy


async def complete(request: Request) -> Response:
    """Answer a request of one of the completion paths. Raises Refusal if it is refused before a version is chosen."""
    return await proxy_of(request).complete(request)


async def models(request: Request) -> Response:
    """List the aliases of the caller's project, and the versions that may be named.

    Raises Refusal 401 without a valid token, 403 without scope infer, and 503 without a usable routing table.
    """
    table = proxy_of(request).table()
    token = authenticate(table, request.headers.get("authorization", ""))
    rows = model_list(table, token.project)
    return Response(orjson.dumps({"object": "list", "data": rows}), media_type="application/json")


async def one_model(request: Request) -> Response:
    """Return the model that the path names, if the caller may name it.

    Raises Refusal 401 without a valid token, 403 without scope infer, 404 for another model, and 503 without a usable
    routing table. A client may ask for a name with slashes: it is a name like others.
    """
    name = "/".join(request.path_params.values())
    table = proxy_of(request).table()
    token = authenticate(table, request.headers.get("authorization", ""))
    return Response(orjson.dumps(find_model(table, token, name)), media_type="application/json")


async def healthz(request: Request) -> Response:
    """Answer that the process is alive."""
    return Response(b'{"status":"ok"}', media_type="application/json")


async def readyz(request: Request) -> Response:
    """Answer that the router has a routing table that is not too old. Raises Refusal 503 otherwise.

    It does not ask Valkey or replicas: the router serves while all else is down.
    """
    table: RoutingTable = proxy_of(request).table()
    return Response(orjson.dumps({"status": "ok", "generation": table.generation}), media_type="application/json")


async def metrics(request: Request) -> Response:
    """Return the metrics that the caller may read, in Prometheus' text format.

    Raises what `readable_metrics` raises.
    """
    proxy, readable = proxy_of(request), readable_metrics(request)
    proxy.metrics.generation.set(proxy.watcher.table.generation if proxy.watcher.table else 0)
    proxy.metrics.age.set(proxy.watcher.age_s())
    proxy.metrics.dropped.set(proxy.reporter.dropped)
    upstream = proxy.upstream
    proxy.metrics.queue(upstream.loads.in_flight, len(upstream.breaker.open_now()), proxy.cold.waiting)
    return Response(generate_latest(readable), media_type="text/plain; version=0.0.4")


def readable_metrics(request: Request) -> Collector:
    """Return the metrics that the caller's token may read.

    The operator's token reads all, a project's token those of the project and those that name no project or replica.
    Other callers get the metrics without names, or Refusal 401 if there is an operator's token. Raises Refusal 403 for
    a project's token without scope read, and 503 for it without a usable routing table.
    """
    proxy, operator = proxy_of(request), request.app.state.metrics_token
    given = request.headers.get("authorization", "")
    if operator and hmac.compare_digest(given.encode(), f"Bearer {operator}".encode()):
        return proxy.metrics.registry
    if token := known_token(proxy.table(), given) if "ah_" in given else None:
        if "read" not in token.scopes:
            raise Refusal(403, "scope_missing", "The token lacks scope read, which its project's metrics need.")
        return OfProject(proxy.metrics, token.project)
    if operator:
        raise Refusal(401, "invalid_token", "The bearer token of the metrics is required: see --metrics-token-file.")
    return proxy.metrics.nameless()


async def refused(request: Request, refusal: Refusal) -> Response:
    """Count a refusal by project and status, and answer with it; the app's exception handler for Refusal."""
    proxy_of(request).metrics.refused(getattr(request.state, "project", ""), refusal.status)
    return refusal.response()


async def client_left(request: Request, error: ClientDisconnect) -> Response:
    """Answer a client that has disconnected; nobody reads the response."""
    return Response(status_code=CLIENT_CLOSED)


async def broken(request: Request, error: Exception) -> Response:
    """Answer 500 for a bug of the router; the server logs the error."""
    # This answer goes around the middleware that sends the id.
    return Refusal(500, "internal_error", "The router failed on this request.").response({HEADER: request.state.id})


async def unknown(request: Request, error: HTTPException) -> Response:
    """Answer 405 for a wrong method, and 404 for every other path: callers may not reach the engines' own endpoints."""
    if error.status_code == 405:
        return Refusal(405, "method_not_allowed", f"{request.method} is not allowed here.").response(error.headers)
    return Refusal(404, "not_found", f"There is no {request.url.path[:200]}.").response()
