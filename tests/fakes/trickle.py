"""A server that answers each request a byte at a time, without end."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.fakes.server import in_thread

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"


class TricklingServer(socketserver.ThreadingTCPServer):
    """`prompt` is what comes at once; a byte follows every `every_s` seconds."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, prompt: bytes, every_s: float) -> None:
        super().__init__(("127.0.0.1", 0), Trickling)
        self.prompt, self.every_s, self.stopped = prompt, every_s, threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Trickling(socketserver.BaseRequestHandler):
    server: TricklingServer

    def handle(self) -> None:
        with suppress(OSError):
            if self.request.recv(65536):
                self.request.sendall(self.server.prompt)
                while not self.server.stopped.wait(self.server.every_s):
                    self.request.sendall(b"a")


@contextmanager
def trickling(prompt: bytes = HEAD, every_s: float = 0.1) -> Iterator[TricklingServer]:
    with TricklingServer(prompt, every_s) as server, in_thread(server):
        try:
            yield server
        finally:
            server.stopped.set()
