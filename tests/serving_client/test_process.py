"""The router as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fakes.routing import INFER, make_table
from tests.fakes.server import closed_url
from tests.fakes.stage import Engine, Router, announce
from tests.fakes.valkey import Valkey
from tests.waiting import wait_until


@pytest.fixture
def process(valkey: Valkey, engine: Engine, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Router]]:
    """A router with a table."""
    announce(valkey, make_table(engine.url))
    url = closed_url()
    arguments = ["--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--redis-url", valkey.url]
    arguments += ["--snapshot", str(tmp_path / "router/table.json"), "--spool", str(tmp_path / "router/spool")]
    process = subprocess.Popen([sys.executable, "-m", "serving_client.router", *arguments, "--load-deadline-s", "3"])
    with httpx.Client(base_url=url, timeout=15) as http:
        yield process, Router(http, valkey)
    process.kill()
    process.wait()


def is_ready(router: Router) -> bool:
    try:
        return router.generation() is not None
    except httpx.TransportError:
        return False


def test_sigterm_lets_streams_end_and_reports_them(
    process: tuple[subprocess.Popen[bytes], Router], engine: Engine
) -> None:
    popen, router = process
    wait_until(lambda: is_ready(router), 20, "the router to be ready")
    engine.fake.gate.clear()
    body = {"model": "compliance", "prompt": "a", "stream": True}
    with router.http.stream("POST", "/v1/completions", headers=INFER, json=body) as answer:
        chunks = answer.iter_text()
        next(chunks)
        popen.send_signal(signal.SIGTERM)
        wait_until(lambda: not accepts(router), what="the router to refuse new connections")
        engine.fake.gate.set()
        assert "".join(chunks).endswith("data: [DONE]\n\n")
    assert popen.wait(timeout=10) in (0, -signal.SIGTERM)
    assert [report["status"] for report in router.reports()] == [200]


def accepts(router: Router) -> bool:
    try:
        httpx.get(f"{router.http.base_url}/healthz")
    except httpx.TransportError:  # refused, or taken by the system as the listener closed
        return False
    return True


def test_small_answers_do_not_wait_for_an_acknowledgement(
    process: tuple[subprocess.Popen[bytes], Router], engine: Engine
) -> None:
    """Without TCP_NODELAY each of them takes 40 ms on a kept connection; the fastest shows it on any machine."""
    _, router = process
    wait_until(lambda: is_ready(router), 60, "the router to be ready")
    assert min(router.complete().elapsed.total_seconds() for _ in range(20)) < 0.03
    whole = {"model": "compliance", "prompt": "a", "stream": True}
    assert min(streamed(router, whole) for _ in range(20)) < 0.03


def streamed(router: Router, body: dict[str, object]) -> float:
    began = time.perf_counter()
    with router.http.stream("POST", "/v1/completions", headers=INFER, json=body) as answer:
        assert answer.read().endswith(b"[DONE]\n\n")
    return time.perf_counter() - began
