"""Celery tasks of the API: expiry of stored answers."""

from __future__ import annotations

from datetime import timedelta

from celery import shared_task
from django.db.models.functions import Now

from adapterhub.api.models import IdempotentRequest

STORED_FOR = timedelta(hours=24)


@shared_task
def drop_old_answers() -> None:
    """Delete idempotency keys and their encrypted answers that are older than STORED_FOR."""
    IdempotentRequest.objects.filter(created_at__lt=Now() - STORED_FOR).delete()
