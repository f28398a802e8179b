"""Celery's view of training: wake-ups on the gpu queue."""

from celery import shared_task

from training import jobs


@shared_task
def work(kind: str, pk: str) -> None:
    jobs.work(kind, pk)
