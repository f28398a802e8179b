"""The Celery task that sends due deliveries."""

from celery import shared_task

from adapterhub.webhooks import sending


@shared_task
def send_due() -> None:
    """Send the deliveries that are due."""
    sending.send_due()
