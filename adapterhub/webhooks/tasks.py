"""The Celery task that sends due deliveries."""

from celery import shared_task

from adapterhub.webhooks import delivery


@shared_task
def send_due() -> None:
    """Send the deliveries that are due."""
    delivery.send_due()
