"""The Celery application: a message is only a wake-up, the truth is a row in Postgres."""

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
    """Before the pool's processes are made: they inherit it."""
    tracing.start("worker")


@beat_init.connect
def trace_beat(**_: object) -> None:
    tracing.start("beat")


@worker_process_init.connect
@beat_embedded_init.connect
def die_with_parent(**_: object) -> None:
    """A pool process that is busy, or beat, does not notice that its worker was killed, and would go on without it."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@worker_ready.connect
def watch(sender: Any, **_: object) -> None:
    from adapterhub.jobs.watchdog import Watchdog

    Watchdog(sender.app.amqp.queues.consume_from).start()
