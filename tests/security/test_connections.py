"""Attacks with connections that cost little and stay: web and router bound their number and how long they wait."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPResponse
from typing import Any

import httpx
import pytest

from serving_client.http_protocol import BoundedConnection, Connections, network_of
from tests.fakes.server import Server
from tests.waiting import wait_until

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def quiet(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


class Working:
    """An application that works on each request until its caller leaves, as a model may."""

    begun = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        while (await receive())["type"] != "http.disconnect":
            pass


@contextmanager
def served(app: Any, **bounds: Any) -> Iterator[tuple[str, Connections]]:
    counted = Connections(**bounds)
    with Server(app, lifespan="off", http=BoundedConnection.within(counted)) as server:
        yield server.url, counted


def connected(url: str, sent: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10, source_address=(source, 0))
    connection.sendall(sent)
    return connection


def status_of(connection: socket.socket) -> int:
    """The status of what comes; 0 when the connection is closed without an answer."""
    try:
        answer = HTTPResponse(connection)
        answer.begin()
    except (ConnectionError, ValueError, OSError):
        return 0
    return answer.status


def answered(url: str, source: str = "127.0.0.1") -> int:
    """The status of a new connection's request; 0 when it is closed at once."""
    try:
        with closing(connected(url, REQUEST, source)) as connection:
            return status_of(connection)
    except ConnectionError:
        return 0


@pytest.mark.threat("D35")
def test_one_address_holds_a_part_of_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow loris from one address: others are served, and so is it as soon as a connection of its own ends."""
    monkeypatch.setattr(BoundedConnection, "head_s", 60.0)
    with served(quiet, most=100, most_of_one=10) as (url, _), ExitStack() as stack:
        loris = [stack.enter_context(closing(connected(url, b"GET / HTTP/1.1\r\nX-Slow: "))) for _ in range(10)]
        assert answered(url) in (0, 503), "it may be closed before it is read"
        assert answered(url, "127.0.0.2") == 200
        loris[0].close()
        wait_until(lambda: answered(url) == 200, what="a place of its own")


@pytest.mark.threat("D35")
def test_who_waits_makes_room_for_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow loris from a thousand addresses: the connections that ask for nothing end first."""
    monkeypatch.setattr(BoundedConnection, "head_s", 60.0)
    with served(quiet, most=20) as (url, counted), ExitStack() as stack:
        for number in range(60):
            source = f"127.0.{number // 200 + 1}.{number % 200 + 1}"
            stack.enter_context(closing(connected(url, b"GET / HTTP/1.1\r\nX-Slow: ", source)))
        for _ in range(20):
            assert answered(url) == 200
        assert counted._count <= 20


@pytest.mark.threat("D35")
def test_what_is_being_answered_does_not_make_room() -> None:
    app = Working()
    with served(app, most=5) as (url, _), ExitStack() as stack:
        calls = [stack.enter_context(closing(connected(url, REQUEST))) for _ in range(5)]
        wait_until(lambda: app.begun == 5, what="five requests")
        assert answered(url) in (0, 503)
        calls[0].close()

        def has_room() -> bool:
            stack.enter_context(closing(connected(url, REQUEST)))
            return app.begun == 6

        wait_until(has_room, what="a place")


@pytest.mark.threat("D35")
def test_a_head_that_trickles_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then does not renew the deadline."""
    monkeypatch.setattr(BoundedConnection, "head_s", 0.6)
    with served(quiet) as (url, counted), closing(connected(url, b"GET / HTTP/1.1\r\n")) as loris:
        began = time.monotonic()
        loris.settimeout(0.05)
        answer = b""
        while not answer and time.monotonic() - began < 8:
            try:
                loris.sendall(b"X")
                answer = loris.recv(100)
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert time.monotonic() - began < 5
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
        wait_until(lambda: counted._count == 0, what="its end")


@pytest.mark.threat("D35")
def test_who_reads_no_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 2**16, "more_body": True})
            await asyncio.sleep(0)
            if left := counted._count == 0:
                ended.append(left)
                return

    ended: list[bool] = []
    monkeypatch.setattr(BoundedConnection, "stall_s", 0.5)
    with served(endless) as (url, counted), closing(connected(url, REQUEST)):
        wait_until(lambda: bool(ended), what="the answer's end", timeout_s=10)


@pytest.mark.threat("D35")
def test_a_connection_that_asks_again_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(quiet, most=3, most_of_one=3) as (url, counted):
        with httpx.Client() as client:
            assert [client.get(url).status_code for _ in range(50)] == [200] * 50
            assert counted._count == 1
        wait_until(lambda: counted._count == 0, what="its end")
        assert (counted._by_address, counted._idle) == ({}, {})


@pytest.mark.threat("D35")
def test_a_proxy_stands_for_many() -> None:
    with served(quiet, most_of_one=2, proxies=["127.0.0.0/24"]) as (url, _), ExitStack() as stack:
        callers = [stack.enter_context(closing(connected(url, REQUEST))) for _ in range(9)]
        assert [status_of(caller) for caller in callers] == [200] * 9


@pytest.mark.parametrize(
    ("peer", "network"),
    [
        (("203.0.113.9", 1), "203.0.113.9"),
        (("::ffff:203.0.113.9", 1, 0, 0), "203.0.113.9"),
        (("2001:db8::1", 1, 0, 0), "2001:db8::/64"),
        (("fe80::1%eth0", 1, 0, 2), "fe80::/64"),
        ("", ""),
        (None, ""),
    ],
)
def test_addresses_are_counted_in_one_form(peer: Any, network: str) -> None:
    assert network_of(peer) == network


@pytest.mark.threat("D35")
@pytest.mark.slow
@pytest.mark.parametrize("process", ["web", "router"])
def test_a_thousand_slow_connections_hold_up_neither_process(process: str, tmp_path: Any) -> None:
    """The processes as they are started, with bounds from the settings: slow loris from two hundred addresses."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    bounds = {"ADAPTERHUB_CONNECTIONS": "300", "ADAPTERHUB_CONNECTIONS_PER_ADDRESS": "40"}
    if process == "web":
        command = [sys.executable, "-m", "adapterhub.web", "--port", str(port)]
    else:
        command = [
            sys.executable,
            "-m",
            "serving_client.router",
            "--port",
            str(port),
            "--redis-url",
            "redis://127.0.0.1:1",
        ]
        command += ["--snapshot", str(tmp_path / "t"), "--connections", "300", "--connections-per-address", "40"]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    running = subprocess.Popen(command, env={**os.environ, **bounds})
    try:
        wait_until(lambda: answers(url), what=f"{process} to answer", timeout_s=60)
        with ExitStack() as stack:
            for number in range(1000):
                source = f"127.1.{number % 2}.{number % 100 + 1}"
                stack.enter_context(closing(connected(url, b"GET /healthz HTTP/1.1\r\nX-Slow: ", source)))
            slowest = 0.0
            for _ in range(20):
                began = time.monotonic()
                assert httpx.get(f"{url}/healthz", timeout=10).status_code == 200
                slowest = max(slowest, time.monotonic() - began)
            assert slowest < 5
    finally:
        running.terminate()
        running.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False
