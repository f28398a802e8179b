"""The router process through all attacks on its memory, side by side."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes.routing import INFER, STABLE, make_table
from tests.fakes.server import Server
from tests.fakes.stage import Router, router_process, running_engine, running_valkey
from tests.waiting import wait_until

MB = 2**20
MOST_KB = 700_000
AT_ONCE = 16
# Letters of a body -> what it takes once it is parsed: a dictionary for each three of them, or a text of the same size.
CROWDS = {
    "values": b"{}," * 1_300_000 + b"{}",
    "objects": b'{"a":0},' * 480_000 + b"{}",
    "few enough": b"{}," * 200_000 + b"{}",
}


def peak_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def is_ready(router: Router) -> bool:
    try:
        return router.generation() is not None
    except httpx.TransportError:
        return False


def is_answered(router: Router) -> bool:
    try:
        return router.complete().is_success
    except httpx.TransportError:
        return False


@pytest.mark.slow
@pytest.mark.threat("D17", "D18", "D31")
def test_peak_memory_of_the_router_stays_bounded(tmp_path: Path) -> None:
    """One token of scope infer: bodies whose parts unfold, prompts that cannot fit, callers who leave."""
    with running_valkey() as valkey, running_engine() as engine:
        table = make_table(engine.url)
        route = replace(table.versions[STABLE], most_characters=8000)
        table = replace(table, versions={**table.versions, STABLE: route})
        with router_process(valkey, table, tmp_path) as (process, router):
            wait_until(lambda: is_ready(router), 20, "the router to be ready")
            engine.fake.gate.clear()
            port = int(str(router.http.base_url).rpartition(":")[2].strip("/"))
            bodies = [b'{"model": "compliance", "prompt": "a", "metadata": [%s]}' % crowd for crowd in CROWDS.values()]
            bodies += [b'{"model": "compliance", "prompt": "%s"}' % (b"a" * 4_000_000)]
            bodies += [b'{"model": "compliance", "prompt": "a", "%s": [%s]}' % (b"prompt_embeds", CROWDS["few enough"])]
            calls: list[Callable[[], None]] = [left(port, body) for body in bodies for _ in range(AT_ONCE)]
            with ThreadPoolExecutor(AT_ONCE) as crowd:
                for done in [crowd.submit(call) for call in calls]:
                    done.result()
            engine.fake.gate.set()
            wait_until(lambda: is_answered(router), 60, "the router to answer others again")
            assert peak_kb(process.pid) < MOST_KB


@pytest.mark.slow
@pytest.mark.threat("D37")
@pytest.mark.parametrize("kind", ["objects", "counts", "refusal"])
def test_answers_of_hostile_engines_fill_no_memory(tmp_path: Path, kind: str) -> None:
    """The attack: an engine of one project answers its callers with 100 MB each, which unfold, and they do not read."""
    hostile = {
        "objects": b'{"choices": [' + b"{}," * 35_000_000 + b"{}]}",
        "counts": b'{"choices": [{"text": "a"}], "usage": {"prompt_tokens": 9' + b"9" * 100 * MB + b"}}",
        "refusal": b'{"error": [' + b"{}," * 35_000_000 + b"{}]}",
    }[kind]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        status = 400 if kind == "refusal" else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        for first in range(0, len(hostile), MB):
            await send({"type": "http.response.body", "body": hostile[first : first + MB], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    with (
        running_valkey() as valkey,
        Server(app, lifespan="off") as engine,
        router_process(valkey, make_table(engine.url), tmp_path) as (process, router),
    ):
        wait_until(lambda: is_ready(router), 20, "the router to be ready")
        port = int(str(router.http.base_url).rpartition(":")[2].strip("/"))
        body = b'{"model": "compliance", "prompt": "a"}'
        with ThreadPoolExecutor(AT_ONCE) as crowd:
            for done in [crowd.submit(left(port, body, wait_s=10)) for _ in range(AT_ONCE)]:
                done.result()
        wait_until(lambda: is_ready(router), 60, "the router to answer others again")
        assert peak_kb(process.pid) < MOST_KB


def left(port: int, body: bytes, wait_s: float = 2) -> Callable[[], None]:
    """Send a body, wait for an answer for a while, and leave."""

    def ask() -> None:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: {INFER['Authorization']}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection, suppress(OSError):
            connection.sendall(head.encode() + body)
            connection.settimeout(wait_s)
            connection.recv(1)

    return ask
