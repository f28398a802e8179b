"""One trace id in the answer of REST, in the message to the worker, and in the process that does the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import Client

from adapterhub import tracing
from registry.models import Adapter
from registry.serving.valkey import valkey as connect
from serving_client import telemetry
from tests.fakes.collector import Collector
from tests.fakes.server import Server, closed_url
from training.models import Dataset, TrainingRun
from training.worker import runner

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_a_request_is_traced_to_the_child(
    fresh_database: str, ci: str, adapter: Adapter, dataset: Dataset, tmp_path: Path
) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    body = {"project": "eu", "adapter": "dora", "dataset": dataset.pk}
    answer = client.post("/api/v1/training-runs/", body, content_type="application/json")
    assert answer.status_code == 202, answer.content
    parent = answer["traceparent"]
    assert parent.split("-")[1] == TRACE
    assert parent.split("-")[2] != "00f067aa0ba902b7"
    with connect() as queue:
        messages = [json.loads(message) for message in queue.lrange("gpu", 0, -1)]
    assert [message["headers"]["traceparent"] for message in messages] == [parent]
    run = TrainingRun.claim(TrainingRun.objects.get().pk)
    assert run
    run.folder.mkdir(parents=True)
    runner.supervise(run, ["tests.fakes.told_environment", str(tmp_path / "told")])
    assert (tmp_path / "told").read_text() == parent


def test_a_trace_that_is_none_is_not_gone_on_with(ci: str) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}"})
    traceparents = {
        client.get("/healthz", headers={"traceparent": bad})["traceparent"] for bad in ("", "x", "00-0-0-0")
    }
    assert len(traceparents) == 3


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", closed_url())
    telemetry.is_on.cache_clear()
    yield
    telemetry.is_on.cache_clear()


def test_a_child_belongs_to_the_trace_of_its_own_request(traced: None) -> None:
    """A worker that was woken for one job may do a more urgent one."""
    woken = TRACEPARENT.replace("00f067aa0ba902b7", "a" * 16)
    with telemetry.within(woken):
        assert (tracing.here(), tracing.nearest(TRACEPARENT), tracing.nearest("")) == (woken, woken, woken)
        other = TRACEPARENT.replace(TRACE, "b" * 32)
        assert tracing.nearest(other) == other
    assert (tracing.here(), tracing.nearest(TRACEPARENT)) == ("", TRACEPARENT)


def program(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environ},
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
    )


def child(collector: str, *arguments: str) -> int:
    traced = ("-m", "adapterhub.jobs.traced", TRACEPARENT, *arguments)
    return program(*traced, OTEL_EXPORTER_OTLP_ENDPOINT=collector).returncode


def test_a_child_ends_as_it_would_without_a_span(tmp_path: Path) -> None:
    collector = Collector()
    with Server(collector.app()) as server:
        assert child(server.url, "json.tool", "--colour") == 2
        assert child(server.url, "tests.fakes.told_environment", str(tmp_path / "told")) == 1, "it has no TRACEPARENT"
    [refused, broken] = collector.spans
    assert (refused.name, refused.parent, refused.is_failed) == ("json.tool", "00f067aa0ba902b7", True)
    assert (broken.trace, broken.is_failed) == (TRACE, True)


def test_a_collector_that_is_away_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("{}")
    assert child(closed_url(), "json.tool", str(tmp_path / "rows.json"), str(tmp_path / "out.json")) == 0
    assert (tmp_path / "out.json").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("collector", "disabled", "is_loaded"),
    [("http://127.0.0.1:9", "", 1), ("", "", 0), ("http://127.0.0.1:9", "true", 0)],
)
@pytest.mark.slow
def test_without_a_collector_the_sdk_is_not_loaded(collector: str, disabled: str, is_loaded: int) -> None:
    """redis-py imports the API, which is small and does nothing alone."""
    script = "import sys, adapterhub.asgi; sys.exit('opentelemetry.sdk.trace' in sys.modules)"
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector, "OTEL_SDK_DISABLED": disabled}
    done = program("-W", "ignore", "-c", script, **environ)
    assert (done.returncode, done.stderr) == (is_loaded, "")
