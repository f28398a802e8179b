"""The ASGI handler of the web process, which runs each request in one thread of a small permanent pool."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler
from django.db import close_old_connections
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from adapterhub import scratch_files
from adapterhub.http.body_guard import BodyGuard
from adapterhub.workspace import work_folder


class OneThread(ASGIHandler):
    """An ASGI handler that runs all middleware and the view of a request in one thread of a permanent pool.

    Django's own handler starts a thread for each request and switches threads for each middleware, which takes longer
    than most requests.
    """

    chunk_size = 2**20

    def __init__(self) -> None:
        super().__init__()
        # More threads than the pool has connections would only wait for one.
        pool = settings.DATABASES["default"].get("OPTIONS", {}).get("pool") or {}
        self.threads = ThreadPoolExecutor(pool.get("max_size", 16), "request")
        self.guarded = BodyGuard(self.handle, self.threads)

    def load_middleware(self, is_async: bool = False) -> None:
        """Load the middleware for synchronous use."""
        super().load_middleware(is_async=False)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer an HTTP request. Raises ValueError for another protocol."""
        if scope["type"] != "http":
            raise ValueError(f"Not an HTTP connection: {scope['type']}.")
        await self.guarded(scope, receive, send)

    async def read_body(self, receive: Any) -> Any:
        """Return the whole body as a file at position 0, in memory or, if it is large, on disk.

        Raises OutOfSpace, and RequestAborted if the client disconnects; the file is closed then.
        """
        folder = work_folder()
        body = tempfile.SpooledTemporaryFile(settings.FILE_UPLOAD_MAX_MEMORY_SIZE, dir=str(folder))  # noqa: SIM115 - Django's
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RequestAborted
                with scratch_files.space_in(folder):
                    body.write(message.get("body", b""))
                if not message.get("more_body", False):
                    break
        except BaseException:
            # What could not be written fails again when the file is closed.
            with suppress(OSError):
                body.close()
            raise
        body.seek(0)
        return body

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        """Return the response of middleware and view, which run in one thread of the pool.

        If the client disconnects meanwhile, CancelledError is raised, but the thread finishes, and its response is
        closed unsent: it may hold a large file.
        """
        answering = self.threads.submit(copy_context().run, self.answer, request)
        try:
            return await asyncio.shield(asyncio.wrap_future(answering))
        except asyncio.CancelledError:
            answering.add_done_callback(close_unsent)
            raise

    def answer(self, request: HttpRequest) -> HttpResponseBase:
        """Return the response, and close database connections that have expired."""
        try:
            return self.get_response(request)
        finally:
            close_old_connections()

    async def send_response(self, response: Any, send: Any) -> None:
        """Send the response; a stream of synchronous parts is read in the pool."""
        if response.streaming and not response.is_async:
            response.streaming_content = in_blocks(iter(response.streaming_content))
        await super().send_response(response, send)


def close_unsent(answering: Future[HttpResponseBase]) -> None:
    """Close the response, if there is one, for which nobody waits any more."""
    if not answering.cancelled() and answering.exception() is None:
        answering.result().close()


async def in_blocks(content: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the content block by block, read in a single thread, because a query's cursor belongs to its thread.

    Django would read all of the content into memory first.
    """
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "stream")
    try:
        while (block := await loop.run_in_executor(thread, next, content, None)) is not None:
            yield block
    finally:
        thread.submit(close_old_connections)
        thread.shutdown(wait=False)
