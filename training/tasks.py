"""Celery tasks of training: running of jobs on the gpu queue, and checks of datasets on other queues."""

import logging
from typing import Any

from celery import shared_task
from celery.signals import worker_ready
from kombu.exceptions import OperationalError

from adapterhub.jobs import task_times
from training.integrations import mlflow_mirror
from training.models import Dataset
from training.models.job import kinds
from training.worker import runner
from training.worker.host_reports import HostReports

log = logging.getLogger(__name__)


@shared_task
def work(kind: str, pk: str) -> None:
    """Run the next queued job that fits this worker's host, and wait until it ends.

    `kind` and `pk` name the job whose queueing sent this message, for logs and traces alone; another job may be run.
    Raises ValueError for an unknown kind.
    """
    if kind.lower() not in {model._meta.model_name for model in kinds()}:
        raise ValueError(f"No job is of the kind {kind!r}.")
    runner.work()


@worker_ready.connect
def report_host(sender: Any, **_: object) -> None:
    """Start a thread that reports this host's devices as long as the worker runs; only on a worker of the gpu queue."""
    if "gpu" in sender.app.amqp.queues.consume_from:
        HostReports().start()


@shared_task
def mirror() -> None:
    """Copy ended runs to MLflow; no effect if no server is configured."""
    mlflow_mirror.mirror()


@shared_task
def check_dataset(pk: int) -> None:
    """Check an uploaded dataset and store the result; no effect if it was checked or another worker is checking it."""
    if dataset := Dataset.begin_check(pk):
        dataset.judge()


@shared_task
def fetch_dataset(pk: int) -> None:
    """Fetch a dataset from a bucket or a hub, and check it.

    It is a task of its own so that slow remote servers delay only the queue on which it runs.
    """
    check_dataset(pk)


@shared_task
def check_datasets() -> None:
    """Check all datasets that still wait, as when their message or worker was lost.

    Those from a bucket or a hub are queued, if the download queue is empty.
    """
    waiting = Dataset.objects.waiting()
    for pk in waiting.filter(source={}).values_list("pk", flat=True):
        check_dataset(pk)
    elsewhere = list(waiting.exclude(source={}).values_list("pk", flat=True))
    # Messages that wait there will be delivered.
    if elsewhere and task_times.is_empty("download"):
        for pk in elsewhere:
            fetch_dataset.delay(pk)


def check_dataset_soon(pk: int) -> None:
    """Queue the check of a dataset.

    If Valkey does not answer, that is logged, and the next `check_datasets` does it.
    """
    lies_elsewhere = Dataset.objects.filter(pk=pk).exclude(source={}).exists()
    task = fetch_dataset if lies_elsewhere else check_dataset
    try:
        task.delay(pk)
    except OperationalError as error:
        log.warning("Valkey does not answer (%s): the dataset is checked later.", error)
