"""Celery tasks of training: wake-ups of jobs on the gpu queue, checks of datasets on another."""

import logging

from celery import shared_task
from kombu.exceptions import OperationalError

from training.integrations import mlflow_mirror
from training.models import Dataset, erasure
from training.worker import checkpoint_retention, runner

log = logging.getLogger(__name__)


@shared_task
def work(kind: str, pk: str) -> None:
    """Claim the job and run it in a child process."""
    runner.work(kind, pk)


@shared_task
def report_devices() -> None:
    """Record the devices of an idle worker; a busy one reports them with its heartbeats."""
    runner.report_devices()


@shared_task
def drop_old_checkpoints() -> None:
    """Delete this worker's old checkpoints and its local copies of erased datasets."""
    checkpoint_retention.drop_old_checkpoints()
    erasure.drop_erased()


@shared_task
def mirror() -> None:
    """Copy ended runs to MLflow, if a server is configured."""
    mlflow_mirror.mirror()


@shared_task
def check_dataset(pk: int) -> None:
    """Check an uploaded dataset."""
    if dataset := Dataset.begin_check(pk):
        dataset.judge()


@shared_task
def check_datasets() -> None:
    """Check uploads whose message or worker was lost."""
    for pk in Dataset.objects.waiting().values_list("pk", flat=True):
        check_dataset(pk)


def check_dataset_soon(pk: int) -> None:
    """Queue a dataset's check, after the commit. Without Valkey the next `check_datasets` does it."""
    try:
        check_dataset.delay(pk)
    except OperationalError as error:
        log.warning("Valkey does not answer (%s): the dataset is checked later.", error)
