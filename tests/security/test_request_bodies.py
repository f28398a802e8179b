"""Bodies and heads without end, of strangers and of callers: web and router keep little and wait for a while only."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import Client

from adapterhub.accounts.models import User
from adapterhub.http import body_guard
from adapterhub.http.asgi_handler import OneThread
from serving_client.http_protocol import BoundedConnection
from serving_client.router.http import request_bodies
from tests.fakes.routing import INFER, make_table
from tests.fakes.server import Server
from tests.fakes.stage import Router, running_engine, running_router, running_valkey

MB = 2**20
# A sign-in page, a probe, a list, an upload, a path that is not there: none keeps what a stranger sends.
PATHS = [
    "/healthz",
    "/login/",
    "/",
    "/api/v1/datasets/",
    "/api/v1/adapters/dora/versions/",
    "/nowhere",
    "/static/x.css",
]


class Call:
    """One request spoken to the ASGI application: what it was answered, and how much of its body it took."""

    def __init__(self, application: Any, path: str, headers: dict[str, str], method: str = "POST") -> None:
        self.application, self.taken = application, 0
        self.sent: list[Any] = []
        sent = {"Host": "localhost", **headers}
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "client": ("203.0.113.9", 1),
            "server": ("localhost", 80),
            "scheme": "http",
            "http_version": "1.1",
        }

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self, parts: AsyncIterator[bytes]) -> tuple[int, dict[str, Any]]:
        """Return the status and the body's JSON."""

        is_whole = False

        async def receive() -> Any:
            nonlocal is_whole
            part = await anext(parts, None) if not is_whole else None
            if is_whole:
                await asyncio.Event().wait()
            if part is None:
                is_whole = True
                return {"type": "http.request", "body": b"", "more_body": False}
            self.taken += len(part)
            return {"type": "http.request", "body": part, "more_body": True}

        await self.application(self.scope, receive, self.send)
        content = b"".join(message.get("body", b"") for message in self.sent)
        return self.sent[0]["status"], json.loads(content) if content.startswith(b"{") else {}


async def nothing() -> AsyncIterator[bytes]:
    for part in ():
        yield part


async def endless() -> AsyncIterator[bytes]:
    """Enough for every cap, and too little to fill a disk where one is missing."""
    for _ in range(2000):
        yield b"x" * 2**16


@pytest.fixture
def application(fresh_database: str) -> Iterator[OneThread]:
    application = OneThread()
    # A connection that one of the application's threads keeps would hold the test's database.
    max_age = connections.settings["default"]["CONN_MAX_AGE"]
    connections.settings["default"]["CONN_MAX_AGE"] = 0
    yield application
    application.threads.shutdown()
    connections.settings["default"]["CONN_MAX_AGE"] = max_age


@pytest.mark.threat("D18")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("announced", [{"Content-Length": str(400 * MB)}, {"Transfer-Encoding": "chunked"}])
async def test_nothing_of_a_strangers_body_is_kept(
    application: OneThread, path: str, announced: dict[str, str]
) -> None:
    for headers in ({}, {"Authorization": "Bearer ah_nobody_nothing"}, {"Cookie": "sessionid=abc"}):
        call = Call(application, path, announced | headers)
        status, answer = await call.run(endless())
        assert (status, answer["code"], call.taken) == (401, "not_authenticated", 0)
        assert (b"connection", b"close") in call.sent[0]["headers"]


@pytest.mark.threat("D18")
async def test_a_strangers_form_is_read(application: OneThread) -> None:
    async def small() -> AsyncIterator[bytes]:
        yield b"x" * 100

    call = Call(application, "/login/", {"Content-Length": "100"})
    assert await call.run(small()) == (403, {}), "it lacks the token of a form"
    assert call.taken == 100


@pytest.mark.threat("D18")
@pytest.mark.parametrize("announced", [{"Content-Length": str(400 * MB)}, {"Transfer-Encoding": "chunked"}])
async def test_a_caller_is_stopped_at_the_cap_of_the_path(
    application: OneThread, ci: str, settings: Any, announced: dict[str, str]
) -> None:
    settings.UPLOAD_BYTES = 8 * MB
    bearer = {"Authorization": f"Bearer {ci}", **announced}
    for path, most in (("/api/v1/adapters/", 4 * MB), ("/healthz", 4 * MB), ("/api/v1/datasets/", 8 * MB)):
        call = Call(application, path, bearer)
        status, answer = await call.run(endless())
        assert (status, answer["code"]) == (413, "body_too_large")
        assert call.taken <= most + 2**16
        assert str(most) in answer["detail"]


@pytest.mark.threat("D18")
async def test_all_bodies_together_have_a_bound_and_one_caller_half_of_it(
    application: OneThread, ci: str, settings: Any
) -> None:
    settings.SPOOL_BYTES = 6 * MB
    call = Call(application, "/api/v1/datasets/", {"Authorization": f"Bearer {ci}", "Transfer-Encoding": "chunked"})
    status, answer = await call.run(endless())
    assert (status, answer["code"]) == (503, "busy")
    assert call.taken <= 3 * MB + 2**16
    assert await Call(application, "/healthz", {}, "GET").run(nothing()) == (200, {"status": "ok"})


@pytest.mark.threat("D18")
async def test_a_body_that_nobody_announced_is_counted_too(application: OneThread) -> None:
    """Over HTTP/2 a body needs no header that tells of it."""
    for headers in ({}, {"Content-Length": "0"}):
        call = Call(application, "/healthz", headers)
        status, answer = await call.run(endless())
        assert (status, answer["code"]) == (401, "not_authenticated")
        assert call.taken <= 2**17


@pytest.mark.threat("D18")
async def test_a_body_that_pauses_or_trickles_is_given_up(
    application: OneThread, ci: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pausing() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.Event().wait()

    async def trickling() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b"x"

    monkeypatch.setattr(body_guard, "PAUSE_S", 0.2)
    monkeypatch.setattr(body_guard, "GRACE_S", 0.2)
    for body in (pausing(), trickling()):
        call = Call(application, "/login/", {"Content-Length": "60000"})
        status, answer = await call.run(body)
        assert (status, answer["code"]) == (408, "too_slow")


@pytest.fixture
def session(fresh_database: str, alice: User) -> str:
    """The key of a session of alice's."""
    page = Client()
    page.force_login(alice)
    return page.cookies["sessionid"].value


@pytest.mark.threat("D18")
async def test_a_session_is_a_credential_too(application: OneThread, session: str) -> None:
    headers = {"Cookie": f"sessionid={session}", "Content-Length": str(5 * MB)}
    assert (await Call(application, "/healthz", headers).run(endless()))[1]["code"] == "body_too_large"


def spoken(url: str, *parts: bytes, pause_s: float = 0.0) -> tuple[int, float]:
    """Send the bytes; return the status of the answer (0: closed without one) and the seconds until it came."""
    host, port = url.removeprefix("http://").split(":")
    began = time.monotonic()
    with closing(socket.create_connection((host, int(port)), timeout=10)) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
            answer = HTTPResponse(connection)
            answer.begin()
        except (ConnectionError, ValueError):
            return 0, time.monotonic() - began
        return answer.status, time.monotonic() - began


@pytest.mark.threat("D18")
@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: "])
def test_a_head_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    monkeypatch.setattr(BoundedConnection, "head_s", 0.3)
    with Server(quiet, http=BoundedConnection) as server:
        status, seconds = spoken(server.url, head)
        assert (status, seconds < 3) == (408, True)


@pytest.mark.threat("D18")
@pytest.mark.parametrize("head", [b"GET /" + b"a" * 10 * MB, b"GET / HTTP/1.1\r\nX: " + b"a" * 10 * MB])
def test_a_head_without_end_is_cut_off(head: bytes) -> None:
    with Server(quiet, http=BoundedConnection) as server:
        status, seconds = spoken(server.url, head)
        assert status in (0, 431)
        assert seconds < 3


def test_a_slow_answer_and_a_second_request_are_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedConnection, "head_s", 0.2)
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with Server(slow, http=BoundedConnection) as server:
        assert spoken(server.url, request)[0] == 200
        assert spoken(server.url, request, request, pause_s=0.1)[0] == 200


async def quiet(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


async def slow(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(0.4)
    await quiet(scope, receive, send)


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    with running_valkey() as valkey, running_engine() as engine, running_router(valkey, tmp_path) as router:
        router.publish(make_table(engine.url))
        yield router


@pytest.mark.threat("D18")
def test_the_router_reads_nothing_of_strangers_and_closes(router: Router) -> None:
    for path, expected in (("/v1/completions", 401), ("/healthz", 405), ("/nowhere", 404), ("/metrics", 405)):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {400 * MB}\r\n\r\n".encode()
        status, seconds = spoken(str(router.http.base_url).rstrip("/"), head)
        assert (status, seconds < 2) == (expected, True), path


@pytest.mark.threat("D18")
def test_the_router_holds_no_more_than_its_share(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_bodies, "MOST_HELD_BYTES", MB)
    answer = router.complete(prompt="a" * 2 * MB)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
    assert router.complete().status_code == 200


@pytest.mark.threat("D18")
def test_the_router_waits_for_a_body_for_a_while_only(router: Router, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_bodies, "BODY_S", 0.3)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: {INFER['Authorization']}\r\n"
    status, seconds = spoken(str(router.http.base_url).rstrip("/"), f"{head}Content-Length: 99\r\n\r\n{{".encode())
    assert (status, seconds < 3) == (408, True)
