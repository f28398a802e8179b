"""Somebody who reaches the broker: a message is only a wake-up, and no message is code."""

from __future__ import annotations

import json
import pickle
import uuid
from pathlib import Path
from typing import Any

import pytest
from kombu import Producer
from kombu.exceptions import ContentDisallowed

from adapterhub.accounts.models import User
from adapterhub.celery import app
from adapterhub.embedded.valkey import EmbeddedValkey
from registry import tasks as registry
from registry.models import Adapter, AdapterVersion
from training import tasks as training
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.threat("I6")
def test_a_pickle_in_the_queue_is_refused_unread(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Through the real queue, decoded as a worker decodes it."""
    canary, refused = tmp_path / "canary", []
    with app.connection_for_write() as connection:
        channel = connection.channel()
        consumer = app.amqp.TaskConsumer(channel, accept=app.conf.accept_content)
        Producer(channel).publish(
            pickle.dumps(Canary(canary)),
            routing_key="default",
            exchange="default",
            content_type="application/x-python-serialize",
            content_encoding="binary",
        )
        consumer.on_decode_error = lambda message, error: (refused.append(error), message.ack())
        with consumer:
            connection.drain_events(timeout=30)
    assert [type(error) for error in refused] == [ContentDisallowed]
    assert not canary.exists()


def test_the_product_takes_json_only() -> None:
    assert list(app.conf.accept_content) == ["json"]
    assert (app.conf.task_serializer, app.conf.result_serializer) == ("json", "json")


@pytest.mark.threat("I6")
def test_a_forged_wake_up_does_nothing_that_the_database_does_not_say(
    dataset: Dataset, adapter: Adapter, version: AdapterVersion, alice: User
) -> None:
    """Ids of nothing, of what is done already, and of another kind: each row stays as it is."""
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    run.cancel(by=alice.as_actor())
    before = json.dumps([*TrainingRun.objects.values(), *AdapterVersion.objects.values()], default=str)
    training.work("TrainingRun", str(run.pk))
    training.work("RankAnalysis", str(run.pk))
    training.work("TrainingRun", str(uuid.uuid4()))
    training.check_dataset(10**9)
    training.check_dataset(dataset.pk)
    registry.check_version(10**9)
    registry.check_base_model(10**9)
    assert json.dumps([*TrainingRun.objects.values(), *AdapterVersion.objects.values()], default=str) == before
    dataset.refresh_from_db()
    assert dataset.status == "ready"


@pytest.mark.parametrize("kind", ["os", "training.models.User", "../x", "Dataset"])
def test_a_kind_of_work_that_is_none_is_refused(db: None, kind: str) -> None:
    with pytest.raises((LookupError, ValueError, AttributeError)):
        training.work(kind, "1")
