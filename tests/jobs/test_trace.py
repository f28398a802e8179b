"""One trace id in the answer of REST, in the message to the worker, and in the process that does the work."""

from __future__ import annotations

import json
from pathlib import Path

from django.test import Client

from registry.channels import valkey as connect
from registry.models import Adapter
from training import jobs
from training.models import Dataset, TrainingRun

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_request_is_traced_to_the_child(
    fresh_database: str, ci: str, adapter: Adapter, dataset: Dataset, tmp_path: Path
) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    asked = {"project": "eu", "adapter": "dora", "dataset": dataset.pk}
    answer = client.post("/api/v1/training-runs/", asked, content_type="application/json")
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
    jobs.supervise(run, ["tests.fakes.told_environment", str(tmp_path / "told")])
    assert (tmp_path / "told").read_text() == parent


def test_a_trace_that_is_none_is_not_gone_on_with(ci: str) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}"})
    made = {client.get("/healthz", headers={"traceparent": bad})["traceparent"] for bad in ("", "x", "00-0-0-0")}
    assert len(made) == 3
