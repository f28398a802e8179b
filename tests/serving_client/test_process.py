"""The router as a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving_client.router.__main__ import KEEP_ALIVE_S
from tests.fakes.collector import Collector
from tests.fakes.routing import INFER, make_table
from tests.fakes.server import Server
from tests.fakes.stage import Engine, Router, router_process
from tests.fakes.valkey import Valkey
from tests.waiting import wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def environ() -> dict[str, str]:
    return {}


@pytest.fixture
def options() -> list[str]:
    return ["--load-deadline-s", "3"]


@pytest.fixture
def process(
    valkey: Valkey, engine: Engine, tmp_path: Path, environ: dict[str, str], options: list[str]
) -> Iterator[tuple[subprocess.Popen[bytes], Router]]:
    """A router with a table."""
    with router_process(valkey, make_table(engine.url), tmp_path, *options, **environ) as started:
        yield started


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


class TestTraced:
    """With a collector of OpenTelemetry."""

    @pytest.fixture
    def collector(self) -> Collector:
        return Collector()

    @pytest.fixture
    def environ(self, collector: Collector) -> Iterator[dict[str, str]]:
        with Server(collector.app()) as server:
            yield {"OTEL_EXPORTER_OTLP_ENDPOINT": server.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}

    def test_a_replica_is_told_of_the_routers_span(
        self, process: tuple[subprocess.Popen[bytes], Router], engine: Engine, collector: Collector
    ) -> None:
        _, router = process
        wait_until(lambda: is_ready(router), 60, "the router to be ready")
        caller = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "tracestate": "them=1"}
        answers = [router.complete(INFER | caller), router.complete(INFER | caller, stream=True)]
        wait_until(lambda: len(collector.of(TRACE)) == 2, 20, "the collector has both spans")
        traces = [(headers["traceparent"], headers["tracestate"]) for _, headers in engine.fake.received]
        assert traces == [(f"00-{TRACE}-{span.id}-01", "them=1") for span in collector.of(TRACE)]
        for span, answer in zip(collector.of(TRACE), answers, strict=True):
            assert (span.parent, span.service) == ("00f067aa0ba902b7", "adapterhub-router")
            assert span.attributes["adapterhub.response"] == answer.headers["X-Response-ID"]
            assert span.attributes["http.response.status_code"] == "200"


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


def test_an_idle_connection_outlasts_that_of_a_front() -> None:
    longest_front_s = 600
    assert longest_front_s < KEEP_ALIVE_S


class TestImpatient:
    """A router that keeps idle connections for a second."""

    @pytest.fixture
    def options(self) -> list[str]:
        return ["--keep-alive-s", "1"]

    def test_an_idle_connection_is_closed_in_the_end(self, process: tuple[subprocess.Popen[bytes], Router]) -> None:
        _, router = process
        wait_until(lambda: is_ready(router), 60, "the router to be ready")
        with socket.create_connection(("127.0.0.1", router.http.base_url.port or 0), timeout=10) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b"".join(iter(lambda: connection.recv(4096), b""))
        assert received.startswith(b"HTTP/1.1 200")
