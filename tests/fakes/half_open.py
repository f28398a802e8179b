"""Before Valkey's socket: connections that one side believes in while nobody answers, as behind a firewall."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes.server import in_thread


class HalfOpening(socketserver.ThreadingTCPServer):
    """Passes everything on, but nothing any more of connections from before `forget`."""

    daemon_threads = True
    target = ""
    age = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.server_address[1]}/0"

    def forget(self) -> None:
        self.age += 1


class Passing(socketserver.BaseRequestHandler):
    server: HalfOpening

    def handle(self) -> None:
        age = self.server.age
        with socket.socket(socket.AF_UNIX) as far:
            far.connect(self.server.target)
            answers = threading.Thread(target=self.passed, args=(far, self.request, age), daemon=True)
            answers.start()
            self.passed(self.request, far, age)
            far.shutdown(socket.SHUT_RDWR)
            answers.join()

    def passed(self, source: socket.socket, target: socket.socket, age: int) -> None:
        try:
            while data := source.recv(65536):
                if age == self.server.age:
                    target.sendall(data)
        except OSError:
            return


@contextmanager
def half_opening(target: str) -> Iterator[HalfOpening]:
    with HalfOpening(("127.0.0.1", 0), Passing) as server:
        server.target = target
        with in_thread(server):
            yield server
