"""The web process: a request stays in one thread of a few, and what is streamed is never held as a whole."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.test import override_settings
from django.urls import path

from adapterhub.http.asgi_handler import OneThread
from tests.waiting import wait_until

Seen = list[tuple[str, str]]
seen: Seen = []
made: list[int] = []


def note(what: str) -> None:
    seen.append((what, threading.current_thread().name))


def noting(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    def middleware(request: HttpRequest) -> HttpResponseBase:
        note("middleware")
        return get_response(request)

    return middleware


def plain(request: HttpRequest) -> HttpResponse:
    note("view")
    return HttpResponse("here")


def blocks() -> Iterator[bytes]:
    for number in range(50):
        made.append(number)
        note("block")
        yield b"x" * 1000


def streamed(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(blocks())


def slow_file(request: HttpRequest) -> FileResponse:
    requested.set()
    assert released.wait(30)
    return FileResponse(archives[0])


requested, released = threading.Event(), threading.Event()
archives: list[BinaryIO] = []
urlpatterns = [path("plain", plain), path("streamed", streamed), path("slow-file", slow_file)]


async def call_handler(
    handler: OneThread, place: str, sent: Callable[[dict[str, Any]], None], leaves: threading.Event | None = None
) -> None:
    """Send the request; its client stays to the end, or goes as soon as `leaves` is set."""
    scope = {"type": "http", "method": "GET", "path": place, "headers": [(b"host", b"localhost")], "query_string": b""}
    disconnected = asyncio.Event()
    asks = iter([{"type": "http.request", "body": b""}])

    async def receive() -> dict[str, Any]:
        if message := next(asks, None):
            return message
        await (asyncio.to_thread(leaves.wait, 30) if leaves else disconnected.wait())
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent(message)

    await handler(scope, receive, send)


@pytest.fixture
def handler() -> Iterator[OneThread]:
    seen.clear()
    made.clear()
    name = f"{__name__}.noting"
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[name, name]):
        yield OneThread()


@pytest.mark.django_db
def test_middleware_and_view_share_a_thread_that_stays(handler: OneThread) -> None:
    async def three_times() -> None:
        for _ in range(3):
            await call_handler(handler, "/plain", lambda message: None)

    asyncio.run(three_times())
    assert [part for part, _ in seen] == ["middleware", "middleware", "view"] * 3
    assert {thread for _, thread in seen} == {"request_0"}


@pytest.mark.django_db
def test_a_stream_is_sent_as_it_is_made(handler: OneThread) -> None:
    ahead: list[int] = []

    def sent(message: dict[str, Any]) -> None:
        if message.get("body"):
            ahead.append(len(made) - len(ahead))

    asyncio.run(call_handler(handler, "/streamed", sent))
    assert len(ahead) == 50
    assert max(ahead) == 1, "no block was made before the one before it was sent"
    assert len({thread for part, thread in seen if part == "block"}) == 1


@pytest.mark.django_db
def test_a_file_for_a_client_who_left_is_closed(handler: OneThread, tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_bytes(b"many bytes")
    archive = (tmp_path / "archive.zip").open("rb")
    archives.append(archive)
    asyncio.run(call_handler(handler, "/slow-file", lambda message: None, leaves=requested))
    assert not archive.closed
    released.set()
    wait_until(lambda: archive.closed, 10, "the file that was not sent is closed")
