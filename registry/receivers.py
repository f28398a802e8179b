"""What changes elsewhere and routers must hear of: accounts may not import the registry."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models.signals import post_save
from django.dispatch import receiver

from adapterhub.accounts.models import ApiToken, Scope


@receiver(post_save, sender=ApiToken)
def tell_routers(instance: ApiToken, **_: Any) -> None:
    """A new token works, and a revoked one stops working, before the next tick of the control loop."""
    if Scope.INFER in instance.scopes:
        from registry.tasks import publish_soon

        transaction.on_commit(publish_soon)
