"""Celery's view of the outbox."""

from celery import shared_task

from adapterhub.webhooks import sending


@shared_task
def send_due() -> None:
    sending.send_due()
