"""The whole product with a hub that accepts downloads and never answers, and a replica that accepts calls and hangs."""

from __future__ import annotations

import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.api.alert_rules import Samples, firing, samples
from tests.builders.product import Product
from tests.tiny_model import make_model, save_base_model
from tests.waiting import wait_until

ADAPTERS, SLOTS, CALLS = 6, 2, 8
A_MINUTE_AGO = """
import time
from adapterhub.jobs.task_times import valkey
from serving_client.protocol import TASK_SUCCESSES
valkey().hset(TASK_SUCCESSES, "registry.tasks.reconcile", time.time() - 61)
"""


class Hub:
    """The product, and what a pipeline's token does with it."""

    def __init__(self, product: Product) -> None:
        product.manage("create_project", "eu")
        scopes = [part for scope in ("read", "admin", "infer", "operate", "publish") for part in ("--scope", scope)]
        token = product.manage("create_token", "ci", "--project", "eu", *scopes)
        self.product = product
        self.http = httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.http.post(f"{self.product.web}/api/v1/{path}/", json=body)
        assert answer.is_success, answer.text
        created: dict[str, Any] = answer.json()
        return created

    def get(self, path: str) -> Any:
        return self.http.get(f"{self.product.web}/api/v1/{path}/").json()

    def scraped(self) -> Samples:
        return samples(self.http.get(f"{self.product.web}/api/v1/metrics/").text)

    def metrics(self) -> dict[tuple[str, str], float]:
        """Each metric by its name and any of its labels."""
        return {(name, label): value for name, labels, value in self.scraped() for label in (*labels.values(), "")}

    @contextmanager
    def control_worker_stopped(self) -> Iterator[None]:
        """The control worker with its pool, which do nothing as long as the block lasts."""
        processes = [process for process in self.product.processes() if "control" in process.cmdline()]
        assert processes
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                process.resume()

    def ask(self, alias: str) -> float:
        """Seconds until the answer."""
        began = time.perf_counter()
        body = {"model": alias, "prompt": "the bank", "max_tokens": 2}
        answer = self.http.post(f"{self.product.router}/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return time.perf_counter() - began


@pytest.fixture
def silent() -> Iterator[str]:
    """It accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def hub(silent: str) -> Iterator[Hub]:
    home = Path(tempfile.mkdtemp(prefix="adapterhub-stalled-", dir="/tmp"))
    save_base_model(home / "models" / "tiny")
    product = Product(home, empty=True)
    product.environ |= {"HF_ENDPOINT": silent, "ADAPTERHUB_ENGINE_HOSTS": "127.0.0.1"}
    product.environ |= {"ADAPTERHUB_DOWNLOAD_STALL_S": "20", "ADAPTERHUB_BASE_MODEL_SOURCES": "acme"}
    supervisor = product.start()
    hub = Hub(product)
    with hub.http:
        yield hub
    for process in product.processes():
        process.kill()
    supervisor.wait(60)
    shutil.rmtree(home, ignore_errors=True)


def upload(hub: Hub, folder: Path, number: int) -> str:
    torch.manual_seed(number)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(make_model(), config).save_pretrained(folder)
    hub.post("adapters", {"project": "eu", "slug": f"a{number}", "base_model": "tiny"})
    names = ("adapter_model.safetensors", "adapter_config.json")
    files = {name.partition(".")[0]: (name, (folder / name).read_bytes()) for name in names}
    url = f"{hub.product.web}/api/v1/adapters/a{number}/versions/"
    answer = hub.http.post(url, files=files)
    assert answer.status_code in (201, 202), answer.text
    return str(answer.json()["served_name"])


def cold_s(hub: Hub) -> float:
    """The median of calls for versions that are not loaded: of six aliases in turn two are."""
    return statistics.median(hub.ask(f"n{number % ADAPTERS}") for number in range(CALLS))


@pytest.mark.slow
def test_hung_downloads_and_a_hung_replica_slow_no_other_cluster(hub: Hub, silent: str, tmp_path: Path) -> None:
    hub.post("base-models", {"slug": "tiny", "source": "tiny"})
    wait_until(lambda: hub.get("base-models/tiny")["status"] == "ready", 60, "the base model")
    hub.post("clusters", {"project": "eu", "slug": "quiet", "base_model": "tiny", "max_loras": SLOTS})
    hub.post("clusters", {"project": "eu", "slug": "a", "base_model": "tiny"})
    hub.post("replicas", {"cluster": "quiet", "url": hub.product.engine})
    for number in range(ADAPTERS):
        served_name = upload(hub, tmp_path / str(number), number)
        status = f"adapters/a{number}/versions/1"
        wait_until(lambda status=status: hub.get(status)["status"] == "ready", 60, "the check of a version")
        hub.post("aliases", {"project": "eu", "name": f"n{number}", "cluster": "quiet", "version": served_name})
    hub.ask("n0")
    quiet = cold_s(hub)

    for slug in ("slow", "slower", "slowest"):
        hub.post("base-models", {"slug": slug, "source": f"acme/{slug}"})
    hub.post("replicas", {"cluster": "a", "url": silent})
    wait_until(lambda: hub.metrics()["adapterhub_queue_age_seconds", "download"] > 3, 60, "downloads that wait")
    assert cold_s(hub) < max(1.5 * quiet, quiet + 0.5)
    measured = hub.metrics()
    assert measured["adapterhub_loop_age_seconds", ""] < 10
    assert measured["adapterhub_task_age_seconds", "registry.tasks.collect_outcomes"] < 20
    assert measured["adapterhub_cluster_reconciled_age_seconds", "quiet"] < 10
    assert measured["adapterhub_replica_healthy", silent] == 0
    assert firing(hub.scraped()) == {"ReplicaIsAway"}, "the loop goes on, and who looks after it hears of the replica"
    with hub.control_worker_stopped():
        # The worker notes its rounds; what it noted last is set back instead of waiting for a minute.
        hub.product.manage("shell", "-c", A_MINUTE_AGO)
        assert "ControlLoopStalled" in firing(hub.scraped())
    wait_until(lambda: "ControlLoopStalled" not in firing(hub.scraped()), 60, "a round of the loop")
    wait_until(lambda: hub.get("base-models/slow")["status"] == "rejected", 120, "the end of the first download")
    assert "has sent nothing for 20 s" in hub.get("base-models/slow")["message"]
    hub.post("base-models", {"slug": "slow", "source": "acme/other"})
