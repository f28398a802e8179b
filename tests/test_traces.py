"""Traces of the whole product as a collector of OpenTelemetry gets them: one request, one trace, over all processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.client import Client, calls
from tests.builders.product import Product
from tests.fakes.collector import Collector, Span
from tests.fakes.server import Server
from tests.tiny_model import save_base_model, sentences, write_jsonl
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"
SCOPES = ("read", "train", "publish", "operate", "infer", "admin")


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    with Server(collector.app()) as server:
        yield collector, server.url


@pytest.fixture
def product(collector: tuple[Collector, str]) -> Iterator[Product]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-product-", dir="/tmp"))
    save_base_model(home / "models" / "tiny")
    product = Product(home)
    product.environ |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector[1],
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "ADAPTERHUB_TORCH_THREADS": "1",
    }
    supervisor = product.start()
    yield product
    supervisor.terminate()
    supervisor.wait(60)
    for process in product.processes():
        process.kill()
    shutil.rmtree(home, ignore_errors=True)


def ended(api: Client, call: calls.Call[Any], good: str) -> Any:
    def is_good() -> bool:
        state = api.send(call)
        assert state["status"] in ("queued", "checking", "running", good), state
        return bool(state["status"] == good)

    wait_until(is_good, 180, f"{call.path} is {good}")
    return api.send(call)


def test_one_request_is_one_trace_from_rest_to_the_child_and_on_the_router(
    product: Product, collector: tuple[Collector, str]
) -> None:
    product.manage("create_project", "eu")
    scopes = [part for scope in SCOPES for part in ("--scope", scope)]
    token = product.manage("create_token", "ci", "--project", "eu", *scopes)
    traced = {"Authorization": f"Bearer {token}", "traceparent": TRACEPARENT}
    with Client(product.web, token) as api:
        api.send(calls.post("base-models/", slug="tiny", source="tiny"))
        ended(api, calls.get("base-models/tiny/"), "ready")
        api.send(calls.create_adapter("eu", "dora", "tiny"))
        data = api.send(calls.upload_dataset("eu", write_jsonl(product.home / "rows.jsonl", sentences(60))))
        body = {
            "project": "eu",
            "adapter": "dora",
            "dataset": data["id"],
            "method": "lora",
            "hyperparameters": {"steps": 2, "rank": 4, "max_length": 32},
        }
        created = httpx.post(f"{product.web}/api/v1/training-runs/?fields=id", json=body, headers=traced, timeout=60)
        assert created.status_code == 202, created.text
        run = ended(api, calls.training_run(created.json()["id"]), "succeeded")
        api.send(calls.post("clusters/", project="eu", slug="laptop", base_model="tiny"))
        api.send(calls.post("replicas/", cluster="laptop", url=product.engine))
        api.send(calls.create_alias("eu", "compliance", "laptop", run["version"], {}))

    def answer() -> httpx.Response:
        body = {"model": "compliance", "prompt": "the bank", "max_tokens": 1}
        return httpx.post(f"{product.router}/v1/completions", json=body, headers=traced, timeout=120)

    wait_until(lambda: answer().is_success, 180, "the version is served")
    first_export = collector[0]
    names = ("training.recipes.lora", "run/training.tasks.work", "POST /v1/completions", "POST api/v1/training-runs/")
    wait_until(
        lambda: set(names) <= {span.name for span in first_export.of(TRACE)}, 60, f"{names} in {first_export.spans}"
    )

    def only(name: str, service: str, kind: int) -> Span:
        [span] = [span for span in first_export.of(TRACE) if span.name == name]
        assert (span.service, span.kind, span.is_failed) == (service, kind, False)
        return span

    request = only("POST api/v1/training-runs/", "adapterhub-web", 2)
    sent = only("apply_async/training.tasks.work", "adapterhub-web", 4)
    task_span = only("run/training.tasks.work", "adapterhub-worker", 5)
    child = only("training.recipes.lora", "adapterhub-job", 1)
    assert [span.parent for span in (request, sent, task_span, child)] == [CALLER, request.id, sent.id, task_span.id]
    assert created.headers["traceparent"] == f"00-{TRACE}-{request.id}-01"
    assert request.attributes["http.response.status_code"] == "202"
    assert request.attributes["adapterhub.request_id"] == created.headers["x-request-id"]
    served = [span for span in first_export.of(TRACE) if span.name == "POST /v1/completions"]
    assert {(span.service, span.kind, span.parent) for span in served} == {("adapterhub-router", 2, CALLER)}
    assert served[-1].attributes["adapterhub.version"] == run["version"]
    assert "fields=" not in str(first_export.spans), "a query may hold a secret"
