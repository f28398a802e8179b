"""Ended runs in a real MLflow server: what it answers when it is asked for them, and after it was away."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion
from tests.tools import MLFLOW, requires
from tests.waiting import wait_until
from training.integrations import mlflow_mirror
from training.models import Dataset, RunMetric, TrainingRun
from training.runs.launch import launch_run

pytestmark = [pytest.mark.slow, requires("mlflow")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    rows = f"sqlite:///{folder}/runs.db"
    command = [
        str(MLFLOW),
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        rows,
        "--artifacts-destination",
        str(folder),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **quiet}, stdout=sys.stderr, stderr=sys.stderr)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url), 120, "MLflow answers")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def ended(adapter: Adapter, version: AdapterVersion, dataset: Dataset, alice: User) -> TrainingRun:
    run = launch_run(adapter=adapter, dataset=dataset, hyperparameters={"steps": 1200}, by=alice.as_actor())
    claimed = TrainingRun.claim(run.pk)
    assert claimed
    RunMetric.objects.bulk_create(RunMetric(run=run, step=step, values={"loss": 1 / step}) for step in range(1, 1201))
    claimed.failed("diverged", "The loss is not finite.")
    return TrainingRun.objects.get()


def there(url: str) -> list[Any]:
    api = f"{url}/api/2.0/mlflow"
    experiment = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": "eu/dora"}).json()
    query = {"experiment_ids": [experiment["experiment"]["experiment_id"]]}
    return list(httpx.post(f"{api}/runs/search", json=query).json()["runs"])


def test_ended_runs_are_there_once(
    server: str, ended: TrainingRun, version: AdapterVersion, alice: User, settings: Any
) -> None:
    assert mlflow_mirror.mirror() == 0
    settings.MLFLOW_URL = "http://127.0.0.1:1"
    assert mlflow_mirror.mirror() == 0
    settings.MLFLOW_URL = server
    assert mlflow_mirror.mirror() == 1
    assert mlflow_mirror.mirror() == 0
    (run,) = there(server)
    assert run["info"]["status"] == "FAILED"
    api = f"{server}/api/2.0/mlflow/metrics/get-history"
    query = {"run_id": run["info"]["run_id"], "metric_key": "loss", "max_results": 25_000}
    history = httpx.get(api, params=query).json()["metrics"]
    assert {row["step"]: row["value"] for row in history} == {step: 1 / step for step in range(1, 1201)}

    at = ended.finished_at
    ended.resume(by=alice.as_actor())
    TrainingRun.objects.update(status="succeeded", version=version, finished_at=at, loss_after=0.5)
    assert mlflow_mirror.mirror() == 1
    (run,) = there(server)
    parameters = {row["key"]: row["value"] for row in run["data"]["params"]}
    assert (parameters["steps"], parameters["method"]) == ("1200", "lora")
    tags = {row["key"]: row["value"] for row in run["data"]["tags"]}
    assert (tags["adapterhub.run"], tags["adapterhub.version"]) == (str(ended.pk), version.served_name)
    assert tags["adapterhub.digest"] == version.digest
    assert run["info"]["status"] == "FINISHED"
    assert ("held_out_loss_after", 0.5) in [(row["key"], row["value"]) for row in run["data"]["metrics"]]
    used = run["inputs"]["dataset_inputs"][0]["dataset"]
    assert (used["name"], used["source"]) == (ended.dataset.name, ended.dataset.digest)
    assert len(run["inputs"]["dataset_inputs"]) == 1
