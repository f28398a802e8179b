"""Memory that runs out, and devices that must be free soon: what a run says, and that the next one runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import psutil
import pytest
from django.conf import settings
from django.db import connection

from adapterhub.accounts.models import Project, User
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, BaseModel
from tests.builders import rows, write_jsonl
from tests.tiny_model import save_base_model
from tests.waiting import wait_until
from training.models import Dataset, RunLog, TrainingRun
from training.planning import preflight
from training.recipes.peak_memory import out_of_memory
from training.recipes.run_file import Hyperparameters
from training.runs.launch import launch_run
from training.worker import checkpoint_retention
from training.worker.runner import report_devices, work

FAST = {"rank": 4, "steps": 4, "batch_size": 2, "max_length": 32, "checkpoint_steps": 3, "eval_tokens": 64}
pytestmark = pytest.mark.slow

# Python reads it in every child before anything else.
FULL_DEVICE = """
import torch, transformers

def training_step(self, *arguments, **named):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

transformers.Trainer.training_step = training_step
"""


@pytest.fixture
def arguments(fresh_database: str, project: Project, alice: User, tmp_path: Path) -> dict[str, object]:
    model = BaseModel.objects.create(slug="tiny-llama", source="tiny-llama")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    file = write_jsonl(tmp_path / "long.jsonl", rows(120))
    return {
        "adapter": Adapter.create(project=project, slug="trained", base_model=model, by=alice.as_actor()),
        "dataset": Dataset.create(project=project, name="long", file=file, filename="long.jsonl", by=alice.as_actor()),
        "by": alice.as_actor(),
    }


def test_memory_that_ran_out_is_told_with_peak_batch_and_fix_and_the_next_job_runs(
    arguments: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "sitecustomize.py").write_text(FULL_DEVICE)
    # A worker's own thread does so; there is none here.
    report_devices()
    run = launch_run(**arguments, hyperparameters=FAST)
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(full), os.environ.get("PYTHONPATH", "")]))
        work()
    run.refresh_from_db()
    assert (run.status, run.reason) == (JobStatus.FAILED, "gpu_oom")
    assert run.message.startswith("Memory ran out at ")
    assert "GB with 2 sequences of up to 32 tokens. Set batch_size 1 and gradient_accumulation 2" in run.message
    assert "CUDA out of memory" in RunLog.tail(run, 8_000)
    after = launch_run(**arguments, hyperparameters={**FAST, "batch_size": 1, "gradient_accumulation": 2})
    work()
    after.refresh_from_db()
    assert (after.status, after.message) == (JobStatus.SUCCEEDED, "")
    assert all(metric.values["memory_bytes"] > 10**8 for metric in after.metrics.all())

    # The worker has reported its device, and the run its pace: the next preflight knows both.
    forecast = preflight.check(TrainingRun.planned(**arguments, hyperparameters={**FAST, "steps": 400}))
    assert (forecast["memory"]["verdict"], forecast["disk"]["verdict"]) == ("fits", "fits")
    assert forecast["memory"]["device_bytes"] > 10**9
    assert forecast["time"]["seconds"] > 0
    assert forecast["time"]["tokens"] <= 400 * 2 * 32
    assert forecast["queue"]["free"]


@pytest.mark.parametrize(
    ("chosen", "method", "fragment"),
    [
        ({"batch_size": 1, "max_length": 2048}, "lora", "Set recompute 1"),
        ({"batch_size": 1, "max_length": 2048, "recompute": 1}, "lora", "Set max_length 1024."),
        ({"batch_size": 1, "max_length": 512, "recompute": 1}, "lora", "Take method qlora"),
        ({"batch_size": 1, "max_length": 512, "recompute": 1}, "qlora", "Take a smaller base model."),
    ],
)
def test_the_fix_is_one_that_is_left(chosen: dict[str, int], method: str, fragment: str) -> None:
    assert fragment in out_of_memory(Hyperparameters(**chosen), method)


def test_a_cancel_frees_every_process_of_a_run_soon_at_the_ordinary_heartbeat(
    arguments: dict[str, object], alice: User, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.setattr(settings, "HEARTBEAT_S", 10)
    monkeypatch.setattr(settings, "LEASE_S", 60)
    run = launch_run(**arguments, hyperparameters={**FAST, "steps": 5000, "devices": 2, "batch_size": 1})

    def in_a_worker() -> None:
        work()
        connection.close()

    worker = threading.Thread(target=in_a_worker)
    worker.start()
    wait_until(lambda: run.metrics.count() > 2, 120, "the run logs steps")
    launcher = psutil.Process(int((run.folder / "child.pid").read_text()))
    processes = [launcher, *launcher.children(recursive=True)]
    assert len(processes) >= 3
    began = time.monotonic()
    for _ in range(2):
        run.cancel(by=alice.as_actor())
    worker.join(60)
    psutil.wait_procs(processes, timeout=60)
    # Ten seconds is what we promise; a machine that tests eight things at once may take longer.
    assert time.monotonic() - began < (10 if pytestconfig.getoption("--soak") else 60)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    run.refresh_from_db()
    assert run.status == JobStatus.CANCELLED
    assert run.metrics.last().step == run.progress["step"]
    assert list((run.folder / "output" / "checkpoints").glob("checkpoint-*/complete"))

    assert checkpoint_retention.drop_old_checkpoints() == 0
    monkeypatch.setattr(settings, "CHECKPOINTS_KEPT", settings.CHECKPOINTS_KEPT / 10**9)
    assert checkpoint_retention.drop_old_checkpoints() == 1
    assert not (run.folder / "output").exists()
    assert (run.folder / "log.txt").exists()
