"""What wakes the registry's tasks: its own signals, and changes elsewhere that routers must hear of.

A failure of a task's message is not caught here. The periodic tasks repair what a lost signal of a version, a cluster
or an alias left undone; a base model whose message was lost stays `checking`.
"""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import receiver

from adapterhub.accounts.models import ApiToken
from adapterhub.core.tenancy import Scope
from registry import tasks
from registry.domain_signals import base_model_registered, cluster_changed, routes_changed, version_uploaded


@receiver(version_uploaded)
def check_version(version: int, **_: Any) -> None:
    """Let a worker check the numbers of an uploaded version."""
    tasks.check_version_soon(version)


@receiver(base_model_registered)
def check_base_model(base_model: int, **_: Any) -> None:
    """Let a worker fetch and inspect the files of a base model."""
    tasks.check_base_model.delay(base_model)


@receiver(cluster_changed)
def publish_and_reconcile(**_: Any) -> None:
    """Tell the routers at once, and wake the control loop."""
    tasks.publish_and_reconcile()


@receiver(routes_changed)
def route_and_reconcile(alias: int, **_: Any) -> None:
    """Tell the routers what the alias serves now, and wake the control loop."""
    tasks.route_and_reconcile(alias)


@receiver(post_save, sender=ApiToken)
def publish_token(instance: ApiToken, **_: Any) -> None:
    """Let a new token work, and a revoked one stop working, before the next tick of the control loop."""
    if Scope.INFER in instance.scopes:
        transaction.on_commit(tasks.publish_soon)
