"""Every kind of work has a queue with workers of its own, and no task may hold its worker for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.conf import settings

from adapterhub.celery import app
from adapterhub.embedded.options import Options
from adapterhub.embedded.process_list import full_plan
from tests.composition import our_services

OUTSIDE = ("registry.tasks.check_base_model", "training.tasks.fetch_dataset")
LOOP = (
    "registry.tasks.reconcile",
    "registry.tasks.discover",
    "registry.tasks.look_at_rollouts",
    "registry.tasks.collect_outcomes",
    "adapterhub.jobs.tasks.sweep",
)


def own_tasks() -> list[str]:
    app.loader.import_default_modules()
    return [name for name in app.tasks if not name.startswith("celery.")]


def queue_of(task: str) -> str:
    return str(app.amqp.router.route({}, task)["queue"].name)


@pytest.mark.parametrize("task", sorted(own_tasks()))
def test_a_task_ends_in_time_and_goes_to_a_queue_that_is_served(task: str) -> None:
    known = app.tasks[task]
    soft, hard = (getattr(known, name) or app.conf[f"task_{name}"] for name in ("soft_time_limit", "time_limit"))
    assert 0 < soft < hard
    assert queue_of(task) in settings.QUEUES


def test_what_asks_the_world_outside_shares_no_queue_with_the_loop() -> None:
    assert {queue_of(task) for task in OUTSIDE} == {"download"}
    assert {queue_of(task) for task in LOOP} == {"control"}
    assert all(app.tasks[task].time_limit <= 90 for task in LOOP)


def test_each_queue_has_a_worker_of_its_own_here_and_in_production(tmp_path: Path) -> None:
    embedded = [list(process.argv) for process in full_plan(Options(home=tmp_path, engines=0)).processes]
    production = [service["command"] for service in our_services().values()]
    for commands in (embedded, production):
        queues = [command[command.index("-Q") + 1] for command in commands if command and "-Q" in command]
        assert sorted(queues) == sorted(settings.QUEUES)
