"""Cancel while a run saves and while its version is stored: as the fault table says, once and twice. No child here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connection

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.core.errors import InvalidTransition
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, AdapterVersion
from tests.builders import write_adapter
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run


@pytest.fixture
def finished(fresh_database: str, adapter: Adapter, dataset: Dataset, alice: User) -> TrainingRun:
    """A claimed run whose child has ended well: all that is left is to publish."""
    run = TrainingRun.claim(launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor()).pk)
    assert run
    write_adapter(run.folder / "output" / "adapter")
    (run.folder / "output" / "result.json").write_text(json.dumps({"loss_before": 3.0, "loss_after": 2.0}))
    return run


def tags(run: TrainingRun) -> list[str]:
    return sorted(AuditEvent.objects.filter(object_id=str(run.pk)).values_list("tag", flat=True))


def in_a_thread(work: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        work()
        connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_cancelled_while_it_saves_it_is_cancelled_and_its_checkpoint_stays(finished: TrainingRun, alice: User) -> None:
    for _ in range(2):
        TrainingRun.objects.get(pk=finished.pk).cancel(by=alice.as_actor())
    finished.succeeded(finished.folder)
    finished.refresh_from_db()
    assert (finished.status, finished.version) == (JobStatus.CANCELLED, None)
    assert not AdapterVersion.objects.exists()
    assert (finished.folder / "output" / "adapter").is_dir()
    finished.cancel(by=alice.as_actor())
    assert tags(finished) == ["training_run:cancel_requested", "training_run:cancelled", "training_run:requested"]


def test_cancelled_while_its_version_is_stored_it_waits_and_hears_that_it_succeeded(
    finished: TrainingRun, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    storing, answers = threading.Event(), []
    publish = AdapterVersion.publish

    def slowly(*arguments: object, **named: object) -> AdapterVersion:
        storing.set()
        wait_for_a_lock()
        return publish(*arguments, **named)

    def wait_for_a_lock() -> None:
        """Until somebody else's cancel stands before the row."""
        blocked = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')"
        for _ in range(6000):
            with connection.cursor() as cursor:
                cursor.execute(blocked)
                if cursor.fetchone()[0]:
                    return
            threading.Event().wait(0.01)

    def cancel() -> None:
        storing.wait(60)
        for _ in range(2):
            with pytest.raises(InvalidTransition) as refused:
                TrainingRun.objects.get(pk=finished.pk).cancel(by=alice.as_actor())
            answers.append(refused.value.detail)

    monkeypatch.setattr(AdapterVersion, "publish", slowly)
    thread = in_a_thread(cancel)
    finished.succeeded(finished.folder)
    thread.join(60)
    finished.refresh_from_db()
    assert answers == ["It has already succeeded and can no longer be cancelled."] * 2
    assert (finished.status, finished.version.number) == (JobStatus.SUCCEEDED, 1)
    assert tags(finished) == ["training_run:requested", "training_run:succeeded"]
    assert verify(finished.project)[1] == []


def test_a_cancel_and_the_end_race_to_one_of_two_stories(finished: TrainingRun, alice: User, tmp_path: Path) -> None:
    """Whoever is first: cancelled without a version, or succeeded with one. Never both, never neither."""
    refusals: list[str] = []

    def cancel() -> None:
        try:
            TrainingRun.objects.get(pk=finished.pk).cancel(by=alice.as_actor())
        except InvalidTransition as refused:
            refusals.append(refused.detail)

    thread = in_a_thread(cancel)
    finished.succeeded(finished.folder)
    thread.join(60)
    finished.refresh_from_db()
    published = AdapterVersion.objects.filter(adapter=finished.adapter).count()
    stories = {(JobStatus.SUCCEEDED, 1, 1), (JobStatus.CANCELLED, 0, 0)}
    assert (finished.status, published, len(refusals)) in stories
    assert len(tags(finished)) == 2
