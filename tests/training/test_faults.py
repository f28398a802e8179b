"""Workers and children that are killed, stopped and cancelled: one run, one version, one event of each kind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from django.db import connections

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.core.errors import InvalidTransition
from adapterhub.jobs.models import JobStatus
from registry.models import AdapterVersion
from tests.builders.workers import Started, worker
from tests.waiting import wait_until
from training.models import TrainingRun
from training.worker.runner import work

pytestmark = pytest.mark.slow


def child_of(run: TrainingRun) -> int:
    return int((run.folder / "child.pid").read_text())


def losses(run: TrainingRun) -> dict[int, float]:
    return {metric.step: metric.values["loss"] for metric in run.metrics.all()}


def finish(run: TrainingRun) -> None:
    """What the sweeper and the next worker do."""
    wait_until(lambda: taken_back(run), 60, "the run is queued again")
    work()
    run.refresh_from_db()


def taken_back(run: TrainingRun) -> bool:
    TrainingRun.reclaim(run.pk)
    run.refresh_from_db()
    return run.status == JobStatus.QUEUED


def kill_at(run: TrainingRun, step: int, victim: str, started: Started) -> None:
    before = run.attempt
    process = worker()
    started.append(process)
    wait_until(lambda: claimed_after(run, before), 120, "the worker's claim")
    # An earlier attempt may have come further than this step: then the victim dies at once.
    wait_until(lambda: run.metrics.filter(step__gte=step).exists(), 120, f"step {step}")
    pid = child_of(run)
    os.kill(pid if victim == "child" else process.pid, signal.SIGKILL)
    process.wait(60)
    wait_until(lambda: not alive(pid), 60, "the child ends with its worker")


def stopped_outside_a_transaction(process: subprocess.Popen[bytes]) -> bool:
    """A process that is stopped with a row locked would stop the test too."""
    process.send_signal(signal.SIGSTOP)
    with connections["default"].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
        )
        busy = cursor.fetchone()[0]
    if busy:
        process.send_signal(signal.SIGCONT)
    return not busy


def claimed_after(run: TrainingRun, attempt: int) -> bool:
    run.refresh_from_db()
    return run.attempt > attempt


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_kill_9_leaves_one_run_with_the_losses_of_an_undisturbed_one(
    launch: Callable[..., TrainingRun], started: Started, pytestconfig: pytest.Config
) -> None:
    calm = launch("calm")
    work()
    chance = random.Random(4)
    for count in range(10 if pytestconfig.getoption("--soak") else 1):
        run = launch(f"disturbed-{count}")
        kill_at(run, chance.randrange(1, 25), "child", started)
        wait_until(lambda run=run: taken_back(run), 60, "the run is queued again")
        kill_at(run, chance.randrange(26, 55), "worker", started)
        finish(run)
        assert (run.status, run.message, run.attempt) == (JobStatus.SUCCEEDED, "", 3)
        assert losses(run) == losses(calm)
        assert AdapterVersion.objects.filter(adapter=run.adapter).count() == 1
        assert run.version.digest == AdapterVersion.objects.get(adapter=calm.adapter).digest
        tags = AuditEvent.objects.filter(object_id=str(run.pk)).values_list("tag", flat=True)
        assert sorted(tags) == ["training_run:requested", "training_run:succeeded"]
    assert verify(calm.project)[1] == []


def test_a_worker_that_was_stopped_past_its_lease_writes_nothing(
    launch: Callable[..., TrainingRun], started: Started
) -> None:
    run = launch("stopped", steps=400)
    process = worker()
    started.append(process)
    wait_until(lambda: run.metrics.filter(step__gte=3).exists(), 120, "three steps")
    first = child_of(run)
    wait_until(lambda: stopped_outside_a_transaction(process), 60, "a moment without a lock")
    TrainingRun.objects.filter(pk=run.pk).update(hyperparameters={**run.hyperparameters, "steps": 60})
    finish(run)
    assert not alive(first)
    after = (run.status, run.attempt, run.finished_at, losses(run))
    process.send_signal(signal.SIGCONT)
    assert process.wait(60) == 0
    run.refresh_from_db()
    assert (run.status, run.attempt, run.finished_at, losses(run)) == after
    assert after[:2] == (JobStatus.SUCCEEDED, 2)
    assert AdapterVersion.objects.count() == 1


def test_cancel_is_answered_in_every_state(
    launch: Callable[..., TrainingRun], alice: User, fresh_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued = launch("queued")
    for _ in range(2):
        queued.cancel(by=alice.as_actor())
        assert queued.status == JobStatus.CANCELLED

    saving = launch("saving", steps=6)
    publish = TrainingRun.succeeded

    def cancelled_first(run: TrainingRun, folder: Path) -> None:
        for _ in range(2):
            TrainingRun.objects.get(pk=run.pk).cancel(by=alice.as_actor())
        publish(run, folder)

    monkeypatch.setattr(TrainingRun, "succeeded", cancelled_first)
    work()
    saving.refresh_from_db()
    assert saving.status == JobStatus.CANCELLED
    assert not AdapterVersion.objects.exists()

    monkeypatch.undo()
    saving.resume(by=alice.as_actor())
    work()
    saving.refresh_from_db()
    assert saving.status == JobStatus.SUCCEEDED
    with pytest.raises(InvalidTransition):
        saving.cancel(by=alice.as_actor())
    for run in (queued, saving):
        ends = AuditEvent.objects.filter(object_id=str(run.pk), tag="training_run:cancelled")
        assert ends.count() == 1
