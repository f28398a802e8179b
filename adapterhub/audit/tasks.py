"""Celery tasks of the audit trail: sealing and checkpoints."""

from celery import shared_task

from adapterhub.audit import access_log, checkpoints


@shared_task
def seal() -> None:
    """Append the waiting access events to their chains."""
    access_log.seal()


@shared_task
def checkpoint() -> None:
    """Sign the head of every chain."""
    access_log.seal()
    checkpoints.write_all()
