"""Every POST over TCP through a proxy that cuts the connection when the answer comes: sent again, it has one effect."""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.builders.walk import ASKING, POSTS, address, body, files, many_rows, row_counts

RESET = struct.pack("ii", 1, 0)


class CuttingProxy(socketserver.ThreadingTCPServer):
    """Carries one request a connection; the answer to a key's first request is read, and then lost."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), Carry)
        self.upstream = upstream
        self.keys: set[str] = set()


class Carry(socketserver.StreamRequestHandler):
    server: CuttingProxy

    def handle(self) -> None:
        lines = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line)
        head = {name.lower(): value.strip() for name, _, value in (line.decode().partition(":") for line in lines[1:])}
        content = self.rfile.read(int(head.get("content-length", 0)))
        answer = self.ask(b"".join(lines) + b"\r\n" + content)
        key = head["idempotency-key"]
        if key in self.server.keys:
            self.wfile.write(answer)
            return
        self.server.keys.add(key)
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.request.close()

    def ask(self, request: bytes) -> bytes:
        parts = urlsplit(self.server.upstream)
        with socket.create_connection((parts.hostname, parts.port), 30) as upstream:
            upstream.sendall(request)
            return b"".join(iter(lambda: upstream.recv(65536), b""))


@pytest.fixture
def proxy(site: str) -> Iterator[str]:
    with CuttingProxy(site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def post(http: httpx.Client, name: str, url: str, key: str, folder: Path) -> httpx.Response:
    headers = {"Idempotency-Key": key, "Connection": "close"}
    form = many_rows() if name == "api:dataset-list" else files(name, folder)
    if form is None:
        content = json.dumps(body(name, folder), default=str)
        return http.post(url, content=content, headers={**headers, "Content-Type": "application/json"})
    sent = {field: (f"{field}.jsonl", part.read()) for field, part in form.items() if hasattr(part, "read")}
    return http.post(url, data={"project": "eu"} if "project" in form else {}, files=sent, headers=headers)


@pytest.mark.slow
def test_an_answer_lost_on_the_way_has_one_effect(
    proxy: str,
    world: dict[str, Any],
    ci: str,
    tmp_path: Path,
) -> None:
    done = set()
    with httpx.Client(base_url=proxy, headers={"Authorization": f"Bearer {ci}"}, timeout=60) as http:
        for name in POSTS:
            url = address(name, world)
            if url is None:
                continue
            key, before = uuid.uuid4().hex, row_counts()
            with pytest.raises(httpx.TransportError):
                post(http, name, url, key, tmp_path)
            first = row_counts()
            again = post(http, name, url, key, tmp_path)
            # A refusal is recorded each time.
            if again.is_success:
                assert row_counts() == first, name
                assert again.headers.get("Idempotency-Replayed") == "true", name
                done |= {name} if first != before else set()
    assert done >= {
        "api:adapter-list",
        "api:version-list",
        "api:dataset-list",
        "api:training-run-list",
        "api:rank-analysis-list",
        "api:evaluation-list",
        "api:token-list",
    }
    assert not done & ASKING
