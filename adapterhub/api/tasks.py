"""What the API forgets in time."""

from __future__ import annotations

from datetime import timedelta

from celery import shared_task
from django.db.models.functions import Now

from adapterhub.api.models import IdempotentRequest

KEPT_FOR = timedelta(hours=24)


@shared_task
def drop_old_answers() -> None:
    """An Idempotency-Key is remembered for a day: a retry comes in minutes, and sealed answers would pile up."""
    IdempotentRequest.objects.filter(created_at__lt=Now() - KEPT_FOR).delete()
