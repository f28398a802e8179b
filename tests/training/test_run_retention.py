"""A run has a retention class and a legal hold, and a hold keeps what would else be dropped."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings
from django.test import Client
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter
from tests.builders.rest import client as api
from tests.builders.rest import problem
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run
from training.worker import checkpoint_retention


@pytest.fixture
def run(adapter: Adapter, dataset: Dataset, alice: User) -> TrainingRun:
    """One that failed long ago and left its checkpoints."""
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    TrainingRun.objects.filter(pk=run.pk).update(status="failed", finished_at=now() - timedelta(days=400))
    (run.folder / "output").mkdir(parents=True)
    run.refresh_from_db()
    return run


def test_a_hold_keeps_the_checkpoints_until_it_is_released(run: TrainingRun, alice: User) -> None:
    run.hold(reason="The regulator asks.", by=alice.as_actor())
    assert checkpoint_retention.drop_old_checkpoints() == 0
    assert (settings.WORK_DIR / str(run.pk) / "output").is_dir()
    run.release(reason="Answered.", by=alice.as_actor())
    assert checkpoint_retention.drop_old_checkpoints() == 1
    tags = [*AuditEvent.objects.about(run).values_list("tag", "reason")[:2]]
    assert tags == [("training_run:hold_released", "Answered."), ("training_run:hold_placed", "The regulator asks.")]


def test_rest_and_page_say_and_change_how_it_is_kept(run: TrainingRun, ci: str, alice: User, bob: User) -> None:
    place = f"/api/v1/training-runs/{run.pk}/keep/"
    body = api(ci).post(place, {"retention": "serving", "hold": True, "reason": "A claim."}).json()
    assert (body["retention"], body["hold_reason"]) == ("serving", "A claim.")
    person = Client()
    person.force_login(alice)
    page = person.get(f"/training/{run.pk}/").content.decode()
    assert "legal hold" in page
    assert "A claim." in page
    person.post(f"/training/{run.pk}/keep/", {"retention": "lifecycle", "reason": "It is over."})
    run.refresh_from_db()
    assert (run.retention, run.hold_reason) == ("lifecycle", "")
    person.force_login(bob)
    assert "Save how long it is kept" not in person.get(f"/training/{run.pk}/").content.decode()
    problem(api(ci).post(place, {"retention": "for ever", "reason": "x"}), 422, "invalid")
