"""Celery tasks of the audit trail: sealing, checkpoints, their witnesses, and the SIEM that follows."""

from celery import shared_task

from adapterhub.audit import access_log, checkpoints
from adapterhub.audit.external import siem, witnesses


@shared_task
def seal() -> None:
    """Append the waiting access events to their chains."""
    access_log.seal()


@shared_task
def checkpoint() -> None:
    """Seal waiting events, sign each chain whose checkpoint is due, and give the witnesses what they lack."""
    access_log.seal()
    checkpoints.write_due()
    witnesses.witness_all()


@shared_task
def follow() -> None:
    """Send new events to the SIEM."""
    siem.follow()
