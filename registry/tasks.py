"""Celery's view of the registry: wake-ups only."""

import logging

import redis
from celery import shared_task
from kombu.exceptions import OperationalError

from registry import outcomes
from registry import reconcile as control_loop
from registry.intake import fetch_base_model
from registry.models import BaseModel, BaseModelStatus

log = logging.getLogger(__name__)


@shared_task
def reconcile() -> None:
    control_loop.reconcile()


@shared_task
def collect_outcomes() -> None:
    outcomes.collect()


@shared_task
def check_base_model(pk: int) -> None:
    model = BaseModel.objects.filter(pk=pk, status=BaseModelStatus.CHECKING).first()
    if model and fetch_base_model(model):
        model.inspect()


def publish_and_reconcile() -> None:
    """After a commit: tell the routers at once, and wake the loop. Without Valkey the next tick does both."""
    try:
        control_loop.publish()
        reconcile.delay()
    except (redis.RedisError, OperationalError) as error:
        log.warning("Valkey does not answer (%s): the control loop will publish the change.", error)
