"""The Celery application. Messages only wake workers up; the state of every job is its row in Postgres."""

import os
import signal
from typing import Any

from celery import Celery
from celery.signals import (
    beat_embedded_init,
    beat_init,
    before_task_publish,
    heartbeat_sent,
    task_success,
    worker_init,
    worker_process_init,
    worker_ready,
)

from adapterhub import tracing
from serving_client.parent_death import die_with_parent

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "adapterhub.settings")

app = Celery("adapterhub")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(
    ["adapterhub.api", "adapterhub.audit", "adapterhub.jobs", "adapterhub.webhooks", "registry", "training"]
)


@worker_init.connect
def trace_worker(**_: object) -> None:
    """Start tracing before the pool forks its processes, so that they inherit it."""
    tracing.start("worker")


@beat_init.connect
def trace_beat(**_: object) -> None:
    """Start tracing in the beat process."""
    tracing.start("beat")


@worker_init.connect
def end_pool_with_worker(**_: object) -> None:
    """Have the kernel kill the pool's processes, and beat, when this worker dies; on Linux only.

    A busy process does not notice by itself that its worker was killed.
    """
    worker, arm = os.getpid(), die_with_parent(signal.SIGKILL)

    def bind(**_: object) -> None:
        # The pool `solo` is the worker itself, whose parent is whoever started it.
        if arm and os.getpid() != worker:
            arm()

    for started in (worker_process_init, beat_embedded_init):
        started.connect(bind, weak=False)


@worker_ready.connect
def watch(sender: Any, **_: object) -> None:
    """Start the watchdog that ends a worker which no longer takes messages, as a receiver of Celery's signal."""
    from adapterhub.jobs.watchdog import Watchdog

    Watchdog(sender.app.amqp.queues.consume_from).start()


@heartbeat_sent.connect
def show_life(**_: object) -> None:
    """Touch the file of the health check, at each heartbeat of the loop that takes messages."""
    from adapterhub.jobs import liveness

    liveness.touch()


@before_task_publish.connect
def stamp(headers: dict[str, Any], **_: object) -> None:
    """Write the time of sending into every message, so that the age of a queue can be measured."""
    from adapterhub.jobs import task_times

    task_times.stamp(headers)


@task_success.connect
def note_success(sender: Any, **_: object) -> None:
    """Store the time at which each task last succeeded; if it does not advance, the worker is stalled."""
    from adapterhub.jobs import task_times

    task_times.note_success(sender.name)
