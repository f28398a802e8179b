"""Leases, fences and the sweeper, on real rows and a real broker."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import InvalidTransition
from adapterhub.jobs.models import JobStatus, StaleAttempt
from adapterhub.jobs.tasks import sweep
from registry.models import Adapter
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run


@pytest.fixture
def run(fresh_database: str, adapter: Adapter, dataset: Dataset, alice: User) -> TrainingRun:
    return launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())


def lose(run: TrainingRun) -> None:
    """The worker was not heard of within the lease."""
    TrainingRun.objects.filter(pk=run.pk).update(lease_expires_at=now() - timedelta(seconds=1))


def test_only_one_claims(run: TrainingRun) -> None:
    first, second = TrainingRun.claim(run.pk), TrainingRun.claim(run.pk)
    assert first is not None
    assert (first.status, first.attempt, second) == (JobStatus.RUNNING, 1, None)


def test_a_stale_attempt_writes_nothing(run: TrainingRun) -> None:
    slow = TrainingRun.claim(run.pk)
    lose(run)
    sweep()
    fast = TrainingRun.claim(run.pk)
    with pytest.raises(StaleAttempt):
        slow.write(progress={"step": 99})
    with pytest.raises(StaleAttempt):
        slow.heartbeat()
    with pytest.raises(StaleAttempt):
        slow.failed("internal", "too late")
    fast.write(progress={"step": 1})
    run.refresh_from_db()
    assert (run.progress, run.attempt, run.status) == ({"step": 1}, 2, JobStatus.RUNNING)


def test_workers_that_die_end_the_job_after_the_cap(run: TrainingRun) -> None:
    for _ in range(run.max_attempts):
        assert TrainingRun.claim(run.pk)
        lose(run)
        sweep()
    run.refresh_from_db()
    assert (run.status, run.reason) == (JobStatus.FAILED, "worker_lost")
    assert AuditEvent.objects.filter(tag="training_run:failed").count() == 1


def test_a_heartbeat_keeps_the_lease(run: TrainingRun) -> None:
    job = TrainingRun.claim(run.pk)
    lose(run)
    job.heartbeat()
    sweep()
    run.refresh_from_db()
    assert (run.status, run.attempt) == (JobStatus.RUNNING, 1)


@pytest.mark.parametrize("wrong", [timedelta(hours=1), timedelta(hours=-1)])
def test_a_clock_that_is_wrong_moves_no_lease(
    run: TrainingRun, monkeypatch: pytest.MonkeyPatch, wrong: timedelta
) -> None:
    """What a worker and the sweeper hold for now; the lease ends by the database's clock."""
    right = now()
    for place in ("django.utils.timezone.now", "adapterhub.jobs.models.now"):
        monkeypatch.setattr(place, lambda: right + wrong)
    job = TrainingRun.claim(run.pk)
    job.heartbeat()
    sweep()
    run.refresh_from_db()
    assert (run.status, run.attempt) == (JobStatus.RUNNING, 1)
    assert abs(run.lease_expires_at - right) < timedelta(minutes=10)


def test_cancel_while_queued_is_final(run: TrainingRun, alice: User) -> None:
    run.cancel(by=alice.as_actor())
    run.cancel(by=alice.as_actor())
    assert run.status == JobStatus.CANCELLED
    assert TrainingRun.claim(run.pk) is None
    assert AuditEvent.objects.filter(tag="training_run:cancelled").count() == 1


def test_cancel_while_running_reaches_the_worker_by_its_heartbeat(run: TrainingRun, alice: User) -> None:
    job = TrainingRun.claim(run.pk)
    run.cancel(by=alice.as_actor())
    assert job.heartbeat() == JobStatus.STOPPING
    job.cancelled()
    run.refresh_from_db()
    assert run.status == JobStatus.CANCELLED


def test_a_stopping_job_whose_worker_died_is_cancelled(run: TrainingRun, alice: User) -> None:
    TrainingRun.claim(run.pk)
    run.cancel(by=alice.as_actor())
    lose(run)
    sweep()
    run.refresh_from_db()
    assert run.status == JobStatus.CANCELLED


def test_cancel_after_the_end_is_refused(run: TrainingRun, alice: User) -> None:
    TrainingRun.claim(run.pk).failed("internal", "broken")
    with pytest.raises(InvalidTransition):
        run.cancel(by=alice.as_actor())


def test_a_failed_run_can_be_resumed(run: TrainingRun, alice: User) -> None:
    TrainingRun.claim(run.pk).failed("worker_lost", "gone")
    run.resume(by=alice.as_actor())
    assert TrainingRun.claim(run.pk).attempt == 2
