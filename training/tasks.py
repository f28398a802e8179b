"""Celery's view of training: wake-ups on the gpu queue."""

from celery import shared_task

from training import jobs, retention


@shared_task
def work(kind: str, pk: str) -> None:
    jobs.work(kind, pk)


@shared_task
def report_devices() -> None:
    """What an idle worker computes on; a busy one reports with its heartbeats."""
    jobs.report_devices()


@shared_task
def drop_old_checkpoints() -> None:
    """Of this worker's host."""
    retention.drop_old_checkpoints()
