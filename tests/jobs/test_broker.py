"""Valkey as the broker is gone, wiped, or says everything five times: Postgres knows what is to be done, once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging, worker_ready
from django.test import Client

from adapterhub.accounts.models import User
from adapterhub.celery import app, watch
from adapterhub.embedded.valkey import EmbeddedValkey
from adapterhub.jobs.models import JobStatus
from adapterhub.jobs.tasks import sweep
from registry.models import Adapter
from registry.serving.valkey import valkey as connect
from tests.waiting import wait_until
from training.models import Dataset, TrainingRun
from training.models.job import GpuJob
from training.runs.launch import launch_run
from training.tasks import report_host
from training.worker import runner

Launch = Callable[[], TrainingRun]


@pytest.fixture
def launch(fresh_database: str, adapter: Adapter, dataset: Dataset, alice: User) -> Launch:
    return lambda: launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each job was carried out; the child process is left out."""
    counted: Counter[str] = Counter()

    def execute(job: GpuJob) -> None:
        counted[str(job.pk)] += 1
        job.failed("internal", "left out")

    monkeypatch.setattr(runner, "execute", execute)
    return counted


@contextmanager
def workers(count: int) -> Iterator[None]:
    """A real worker of the gpu queue, so many jobs at a time; its watchdog would end the process of the tests, its log
    would silence theirs, and what it reads would be all that they read.
    """
    queues = app.amqp.queues
    read = queues._consume_from
    worker_ready.disconnect(watch)
    worker_ready.disconnect(report_host)
    setup_logging.connect(as_it_is)
    try:
        with start_worker(
            app, concurrency=count, pool="threads", queues=["gpu"], perform_ping_check=False, shutdown_timeout=30
        ):
            yield
    finally:
        queues._consume_from = read
        setup_logging.disconnect(as_it_is)
        worker_ready.connect(watch)
        worker_ready.connect(report_host)


def as_it_is(**_: object) -> None:
    """Celery leaves the log alone when somebody answers."""


def queued() -> list[str]:
    """The jobs that messages in the queue name."""
    with connect() as client:
        messages = [json.loads(message) for message in client.lrange("gpu", 0, -1)]
    return [message["headers"]["argsrepr"] for message in messages]


def ended() -> int:
    return TrainingRun.objects.filter(status=JobStatus.FAILED).count()


def test_what_is_asked_for_without_a_broker_runs_when_it_is_back(
    launch: Launch, valkey: EmbeddedValkey, ci: str, adapter: Adapter, dataset: Dataset, done: Counter[str]
) -> None:
    body = {"project": "eu", "adapter": adapter.slug, "dataset": dataset.pk}
    valkey.stop()
    try:
        answer = Client(headers={"Authorization": f"Bearer {ci}"}).post(
            "/api/v1/training-runs/", body, content_type="application/json"
        )
        assert answer.status_code == 202, answer.content
        assert TrainingRun.objects.get().status == JobStatus.QUEUED
    finally:
        valkey.start()
    sweep()
    with workers(1):
        wait_until(lambda: ended() == 1, 60, "the run is done")
    assert list(done.values()) == [1]


@pytest.mark.slow
def test_a_wiped_broker_loses_nothing(launch: Launch, done: Counter[str]) -> None:
    runs = {str(launch().pk) for _ in range(50)}
    with connect() as client:
        client.flushall()
    sweep()
    assert len(queued()) == 50
    with workers(2):
        wait_until(lambda: ended() == 50, 60, "all are done")
    assert done == Counter(runs)


def test_a_worker_goes_on_after_its_broker_was_wiped(launch: Launch, done: Counter[str]) -> None:
    with workers(1):
        launch()
        wait_until(lambda: ended() == 1, 60, "the first is done")
        with connect() as client:
            client.flushall()
        launch()
        wait_until(lambda: swept() == 2, 60, "the second is done")
    assert list(done.values()) == [1, 1]


def swept() -> int:
    sweep()
    return ended()


def test_a_message_that_comes_five_times_to_three_workers_is_one_run(launch: Launch, done: Counter[str]) -> None:
    run = launch()
    for _ in range(4):
        run.wake_worker()
    assert len(queued()) == 5
    with workers(3):
        wait_until(lambda: not queued() and ended() == 1, 60, "the run is done and the queue is empty")
    assert done == {str(run.pk): 1}
    run.refresh_from_db()
    assert run.attempt == 1
