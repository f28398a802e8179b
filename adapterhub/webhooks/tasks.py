"""The Celery task that sends due deliveries."""

from celery import shared_task

from adapterhub.webhooks import delivery


@shared_task
def send_due() -> None:
    """Send one round of due deliveries: at most 50, and for about 30 seconds."""
    delivery.send_due()
