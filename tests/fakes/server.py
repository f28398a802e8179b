"""An ASGI application as a real HTTP server on a loopback port, in a thread of the test."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Self

import uvicorn

from tests.waiting import wait_until


class Server:
    """A context manager; `url` is where it listens."""

    def __init__(self, app: Any, lifespan: Literal["on", "off"] = "on", **options: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app,
            log_level="warning",
            ws="none",
            lifespan=lifespan,
            timeout_graceful_shutdown=5,
            proxy_headers=False,
            **options,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started, what="the server to listen")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self._socket.close()
        assert not self._thread.is_alive()


def closed_url() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


class DyingReplica(socketserver.ThreadingTCPServer):
    """Takes each request and closes its connection without a word, as an engine that crashes on it."""

    requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Dying(socketserver.BaseRequestHandler):
    server: DyingReplica

    def handle(self) -> None:
        if self.request.recv(65536):
            self.server.requests += 1


@contextmanager
def dying_replica() -> Iterator[DyingReplica]:
    with DyingReplica(("127.0.0.1", 0), Dying) as server, in_thread(server):
        yield server


@contextmanager
def in_thread(server: socketserver.BaseServer) -> Iterator[None]:
    """It serves as long as the block lasts."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
