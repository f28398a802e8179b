"""A proxy beside an engine on another machine: `python -m adapterhub.replica_sidecar --store s3://bucket ...`.

It listens at the replica's address. Before the engine loads a version for the control loop, the proxy fetches it from
the store by its digest, verified, to the path that the request names. Only the paths of PASSED are forwarded to the
engine, whose other routes need no key. Every path but `/health` asks for the engine key of the cluster: whoever could
load a version would read it by its answers.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.artifacts import DIGEST, ArtifactError, ArtifactStore, open_store
from serving_client import log_lines

PASSED = {
    "GET": ("/health", "/version", "/v1/models"),
    "POST": (
        "/v1/unload_lora_adapter",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/v1/responses",
    ),
}
LOAD = "/v1/load_lora_adapter"
# What probes of a platform ask, which hold no key.
OPEN = "/health"
# Below the 5 s after which engines close an idle connection.
KEEPALIVE_S = 3.0
# Twice what a router takes.
MOST_BYTES, BODY_S = 8 * 2**20, 60.0
log = logging.getLogger(__name__)


class Agent:
    """The proxy before one engine, which fetches the adapters to load.

    `folder` is the hub's folder of served versions, at the same path on this machine. `keys` are those of which each
    request has to bring one; without any, whoever reaches the port may load and ask.
    """

    def __init__(self, store: ArtifactStore, folder: Path, engine: str, keys: Sequence[str] = ()) -> None:
        self._store, self._folder, self._engine, self._keys = store, folder, engine.rstrip("/"), keys

    def app(self) -> Starlette:
        """Return the ASGI application."""
        passed = [Route(path, self.passed_on, methods=[method]) for method, paths in PASSED.items() for path in paths]
        return Starlette(
            routes=[Route(LOAD, self.load, methods=["POST"]), *passed],
            middleware=[Middleware(KeyRequired, keys=self._keys)] if self._keys else [],
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Hold one HTTP session open while the application runs."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._session:
            yield

    async def load(self, request: Request) -> Response:
        """Fetch the adapter's artifact, verify it, and forward the load request; return the engine's response.

        400 for a path elsewhere, 404 for an artifact that is missing or damaged, 503 if the store does not respond, and
        the statuses of `body_of`.
        """
        try:
            body = await body_of(request)
            path = Path(json.loads(body)["lora_path"])
        except Refused as refusal:
            return refusal.answer()
        except (ValueError, KeyError, TypeError, RecursionError):
            return failure(400, "lora_path is missing.")
        if path.parent != self._folder or not DIGEST.fullmatch(path.name):
            return failure(400, f"Only versions below {self._folder} are loaded.")
        try:
            await asyncio.to_thread(self._store.fetch_dir, path.name, path)
        except ArtifactError as error:
            return failure(404, str(error))
        except OSError as error:
            log.warning("The store does not give %s: %s", path.name[:12], error)
            return failure(503, f"The store does not respond: {error}")
        return await self.forwarded(request, body)

    async def passed_on(self, request: Request) -> Response:
        """Forward the request to the engine and stream its response back.

        503 when the engine does not answer, and the statuses of `body_of`.
        """
        try:
            return await self.forwarded(request, await body_of(request))
        except Refused as refusal:
            return refusal.answer()

    async def forwarded(self, request: Request, body: bytes) -> Response:
        """Forward the request with this body to the engine; 503 when the engine does not answer."""
        headers = {
            name: request.headers[name]
            for name in ("content-type", "x-request-id", "traceparent", "tracestate", "authorization")
            if name in request.headers
        }
        try:
            url = self._engine + request.url.path
            answer = await self._session.request(request.method, url, data=body, headers=headers)
        except (aiohttp.ClientError, TimeoutError) as error:
            return failure(503, f"The engine does not respond: {error}")
        kind = answer.headers.get("content-type", "text/plain")
        return StreamingResponse(chunks(answer), answer.status, {"content-type": kind})


class KeyRequired:
    """Middleware that answers 401 to requests without one of the keys, before a byte of their body is read."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._expected = app, [f"Bearer {key}".encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on if it may be; else answer 401."""
        if scope["type"] == "http" and scope["path"] != OPEN and not self._holds(scope):
            refusal = failure(401, "The engine key of the cluster is missing or is not that of --key-file.")
            refusal.headers["Connection"] = "close"
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _holds(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return any(hmac.compare_digest(given, expected) for expected in self._expected)


def keys_in(file: Path) -> list[str]:
    """Return the keys in the file, one a line; two lines while a key is replaced.

    Raises ValueError for a file without a key, and OSError for one that cannot be read.
    """
    if keys := file.read_text().split():
        return keys
    raise ValueError(f"{file} holds no key: write the cluster's engine key into it.")


class Refused(Exception):
    """Raised for a body that is too large or too slow, so not read to its end; `status` is the answer's, 413 or 408."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def answer(self) -> Response:
        """Return the error response, after which the connection ends: the rest of the body is not read."""
        response = failure(self.status, str(self))
        response.headers["Connection"] = "close"
        return response


async def body_of(request: Request) -> bytes:
    """Return the request's body. Raises Refused 413 for one over MOST_BYTES, and 408 for one that takes over BODY_S."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BYTES:
                    raise Refused(413, f"The body is over {MOST_BYTES >> 20} MB.")
                parts.append(part)
    except TimeoutError:
        raise Refused(408, f"The body did not arrive within {BODY_S:.0f} s.") from None
    return b"".join(parts)


async def chunks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Yield the response's chunks; it is closed in any case, so that the engine stops when the caller disconnects."""
    try:
        async for chunk in answer.content.iter_any():
            yield chunk
    finally:
        answer.close()


def failure(status: int, message: str) -> Response:
    """Return an error response in the engines' format."""
    return JSONResponse({"error": {"message": message, "type": "Sync", "param": None, "code": status}}, status)


def main() -> None:
    """Run the sidecar with the command line's options."""
    parser = argparse.ArgumentParser(
        prog="python -m adapterhub.replica_sidecar", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--store", required=True, help="the hub's artifact store: s3://bucket/prefix or a folder")
    parser.add_argument("--endpoint-url", help="endpoint of an S3-compatible store that is not Amazon's")
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder of served versions, by the path that the hub uses"
    )
    parser.add_argument("--engine", required=True, help="the engine's address on this machine")
    door = parser.add_mutually_exclusive_group(required=True)
    door.add_argument("--key-file", type=Path, help="file with the cluster's engine key, which every caller must send")
    door.add_argument(
        "--without-key",
        action="store_true",
        help="let whoever reaches the port load and ask: only where a firewall admits the hub and the routers alone",
    )
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    log_lines.add_option(parser)
    options = parser.parse_args()
    log_lines.start("%(levelname)s %(name)s %(message)s", options.log_format)
    try:
        keys = keys_in(options.key_file) if options.key_file else []
    except (OSError, ValueError) as error:
        parser.error(f"--key-file: {error}")
    store = open_store(options.store, endpoint_url=options.endpoint_url)
    agent = Agent(store, options.folder.absolute(), options.engine, keys)
    uvicorn.run(
        agent.app(), host=options.host, port=options.port, access_log=False, log_config=None, server_header=False
    )


if __name__ == "__main__":
    main()
