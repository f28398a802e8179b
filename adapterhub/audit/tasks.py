"""Celery's view of the audit trail."""

from celery import shared_task

from adapterhub.audit import checkpoints, observed


@shared_task
def seal() -> None:
    observed.seal()


@shared_task
def checkpoint() -> None:
    observed.seal()
    checkpoints.write_all()
