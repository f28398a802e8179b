"""kill -9 of the gpu worker, the training child and the supervisor of a whole product, at random steps, 20 times.

`make test` kills a child and a worker once (tests/training/test_faults.py); this is the long form.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.builders import rows
from tests.builders.product import Product
from tests.tiny_model import save_base_model
from tests.tools import requires
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

STEPS = 600
CHOSEN = {"rank": 4, "steps": STEPS, "batch_size": 2, "max_length": 32, "checkpoint_steps": 25, "eval_tokens": 64}
SCOPES = ("read", "train", "publish", "admin", "audit")
RUNS = 5
VICTIMS = ("worker", "child", "supervisor", "worker")


class Watched:
    """A product, its supervisor, and its REST API as one project's token sees it."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.supervisor = product.start()
        product.manage("create_project", "eu")
        token = product.manage("create_token", "ci", "--project", "eu", *(f"--scope={scope}" for scope in SCOPES))
        self.rest = httpx.Client(
            base_url=f"{product.web}/api/v1/", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )

    def get(self, path: str, **query: Any) -> Any:
        return self.rest.get(path, params=query).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return self.rest.post(path, json=body).raise_for_status().json()

    def kill(self, victim: str, run: str) -> None:
        if victim == "supervisor":
            self.supervisor.kill()
            self.supervisor.wait()
            wait_until(lambda: not self.product.processes(), 60, "every process is gone")
            self.supervisor = self.product.start()
            return
        victims = [process for process in self.product.processes() if self.is_victim(process, victim, run)]
        assert victims, f"no {victim} to kill"
        for process in victims:
            process.kill()

    def is_victim(self, process: psutil.Process, victim: str, run: str) -> bool:
        try:
            command = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            return False
        return "-Q gpu" in command if victim == "worker" else "training.recipes" in command and run in command


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    for name, value in {"LEASE_S": 8, "HEARTBEAT_S": 2, "JOB_ATTEMPTS": 9, "TORCH_THREADS": 1}.items():
        monkeypatch.setenv(f"ADAPTERHUB_{name}", str(value))
    home = Path(tempfile.mkdtemp(prefix="adapterhub-kills-", dir="/tmp"))
    save_base_model(home / "models" / "tiny")
    product = Product(home)
    watched = Watched(product)
    with watched.rest:
        yield watched
    for process in product.processes():
        process.kill()
    shutil.rmtree(home, ignore_errors=True)


def prepared(watched: Watched) -> int:
    """The base model is checked and a dataset stored; its id."""
    watched.post("base-models/", slug="tiny", source="tiny")
    wait_until(lambda: watched.get("base-models/tiny/")["status"] == "ready", 60, "the base model is checked")
    lines = "".join(json.dumps(row) + "\n" for row in rows(120))
    answer = watched.rest.post("datasets/", data={"project": "eu"}, files={"file": ("rows.jsonl", lines)})
    return int(answer.raise_for_status().json()["id"])


def launched(watched: Watched, name: str, dataset: int) -> str:
    watched.post("adapters/", project="eu", slug=name, base_model="tiny")
    return str(
        watched.post("training-runs/", project="eu", adapter=name, dataset=dataset, hyperparameters=CHOSEN)["id"]
    )


def steps(watched: Watched, run: str) -> int:
    state = watched.get(f"training-runs/{run}/")
    assert state["status"] not in ("failed", "cancelled"), (state["attempt"], state["reason"], state["message"])
    return int(state["progress"].get("step") or 0)


def succeeded(watched: Watched, run: str) -> bool:
    state = watched.get(f"training-runs/{run}/")
    assert state["status"] not in ("failed", "cancelled"), (state["attempt"], state["reason"], state["message"])
    return bool(state["status"] == "succeeded")


def attempt(watched: Watched, run: str) -> int:
    return int(watched.get(f"training-runs/{run}/")["attempt"])


def losses(watched: Watched, run: str) -> dict[int, float]:
    return {row["step"]: row["values"]["loss"] for row in watched.get(f"training-runs/{run}/metrics/")}


def digest(watched: Watched, run: str) -> str:
    state = watched.get(f"training-runs/{run}/")
    (version,) = watched.get(f"adapters/{state['adapter']}/versions/")["results"]
    assert version["served_name"] == state["version"]
    return str(version["digest"])


@requires("soak")
def test_twenty_kills_leave_every_run_with_the_losses_of_an_undisturbed_one(watched: Watched) -> None:
    dataset = prepared(watched)
    calm = launched(watched, "calm", dataset)
    wait_until(lambda: succeeded(watched, calm), 300, "the calm run ends")
    chance = random.Random(20)
    killed = 0
    for number in range(RUNS):
        run = launched(watched, f"disturbed-{number}", dataset)
        victims = chance.sample(VICTIMS, len(VICTIMS))
        for place, victim in enumerate(victims):
            step = chance.randrange(1, 100) + 110 * place
            wait_until(lambda run=run, place=place: attempt(watched, run) > place, 120, "the claim")
            wait_until(lambda run=run, step=step: steps(watched, run) >= step, 120, f"step {step}")
            watched.kill(victim, run)
            killed += 1
        wait_until(lambda run=run: succeeded(watched, run), 300, "the disturbed run ends")
        assert attempt(watched, run) == len(VICTIMS) + 1
        assert losses(watched, run) == losses(watched, calm)
        assert digest(watched, run) == digest(watched, calm)
        events = watched.get("audit/events/", project="eu", object_id=run)["results"]
        assert sorted(event["tag"] for event in events) == ["training_run:requested", "training_run:succeeded"]
    assert killed == 20
    assert watched.get("audit/verify/", project="eu")["ok"]
    watched.supervisor.terminate()
    watched.supervisor.wait(60)
