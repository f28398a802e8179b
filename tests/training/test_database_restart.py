"""Postgres goes and comes back while a run trains: the worker goes on, and nothing is half done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from django.db import connections
from django.test import Client

from adapterhub.audit.models import AuditEvent, verify
from adapterhub.embedded.postgres import EmbeddedPostgres
from adapterhub.jobs.models import JobStatus
from registry.models import AdapterVersion
from tests.builders.workers import Started, worker
from tests.waiting import wait_until
from training.models import TrainingRun

pytestmark = pytest.mark.slow


@pytest.fixture
def server(postgres: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """Running again afterwards, whatever the test did."""
    yield postgres
    if not postgres.is_running():
        postgres.start()


def test_a_run_goes_on_over_an_immediate_restart(
    launch: Callable[..., TrainingRun], started: Started, server: EmbeddedPostgres, ci: str
) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}"}, raise_request_exception=False)
    run = launch("restarted", steps=150)
    process = worker()
    started.append(process)
    wait_until(lambda: run.metrics.filter(step__gte=3).exists(), 120, "three steps")
    os.kill(server.pid, signal.SIGQUIT)
    wait_until(lambda: not server.is_running(), 30, "Postgres is gone")
    answer = client.get("/api/v1/adapters/")
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    connections.close_all()
    server.start()
    assert process.wait(120) == 0
    run.refresh_from_db()
    assert (run.status, run.attempt, run.message) == (JobStatus.SUCCEEDED, 1, "")
    assert run.metrics.filter(values__has_key="loss").count() == 150, "no step's loss was lost"
    assert AdapterVersion.objects.filter(adapter=run.adapter).count() == 1
    tags = AuditEvent.objects.filter(object_id=str(run.pk)).values_list("tag", flat=True)
    assert sorted(tags) == ["training_run:requested", "training_run:succeeded"]
    assert verify(run.project)[1] == []
