"""Celery tasks of training: wake-ups of jobs on the gpu queue, checks of datasets on another."""

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
    """Run the next queued job that fits this worker's host in a child process until it ends.

    The arguments name the job whose queueing sent this message, for logs and traces alone. Raises ValueError for a kind
    that no job has.
    """
    if kind.lower() not in {model._meta.model_name for model in kinds()}:
        raise ValueError(f"No job is of the kind {kind!r}.")
    runner.work()


@worker_ready.connect
def report_host(sender: Any, **_: object) -> None:
    """Have a worker of the gpu queue report its host by itself, as long as it runs."""
    if "gpu" in sender.app.amqp.queues.consume_from:
        HostReports().start()


@shared_task
def mirror() -> None:
    """Copy ended runs to MLflow, if a server is configured."""
    mlflow_mirror.mirror()


@shared_task
def check_dataset(pk: int) -> None:
    """Check an uploaded dataset, unless its check has ended or another worker has it."""
    if dataset := Dataset.begin_check(pk):
        dataset.judge()


@shared_task
def fetch_dataset(pk: int) -> None:
    """Read a dataset of a bucket or a hub, and check it; on a queue where nobody waits for the world outside."""
    check_dataset(pk)


@shared_task
def check_datasets() -> None:
    """Check all uploads that still wait, whose message or worker was lost."""
    waiting = Dataset.objects.waiting()
    for pk in waiting.filter(source={}).values_list("pk", flat=True):
        check_dataset(pk)
    elsewhere = list(waiting.exclude(source={}).values_list("pk", flat=True))
    # Messages that wait there will be delivered.
    if elsewhere and task_times.is_empty("download"):
        for pk in elsewhere:
            fetch_dataset.delay(pk)


def check_dataset_soon(pk: int) -> None:
    """Queue a dataset's check, after the commit. Without Valkey the next `check_datasets` does it."""
    lies_elsewhere = Dataset.objects.filter(pk=pk).exclude(source={}).exists()
    task = fetch_dataset if lies_elsewhere else check_dataset
    try:
        task.delay(pk)
    except OperationalError as error:
        log.warning("Valkey does not answer (%s): the dataset is checked later.", error)
