"""The Celery application. Messages only wake workers up; the state of every job is its row in Postgres."""

import ctypes
import os
import signal
import sys
from typing import Any

from celery import Celery
from celery.signals import beat_embedded_init, beat_init, worker_init, worker_process_init, worker_ready

from adapterhub import tracing

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
    tracing.start("beat")


@worker_process_init.connect
@beat_embedded_init.connect
def die_with_parent(**_: object) -> None:
    """Have the kernel kill this pool process, or beat, when its worker dies; otherwise it would go on without one.

    A busy process does not notice by itself that its worker was killed. Has an effect on Linux only.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@worker_ready.connect
def watch(sender: Any, **_: object) -> None:
    from adapterhub.jobs.watchdog import Watchdog

    Watchdog(sender.app.amqp.queues.consume_from).start()
