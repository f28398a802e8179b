"""Signal receivers that start the registry's tasks, on its own signals and on changes to tokens, roles and projects.

Errors in sending a task's message are not caught here. Periodic tasks make up for a lost signal.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import transaction
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.core.domain_signals import LEFT_TO_WEB, token_approved
from adapterhub.core.tenancy import Scope
from registry import tasks
from registry.domain_signals import base_model_registered, cluster_changed, routes_changed, version_uploaded


@receiver(version_uploaded)
def check_version(version: int, **_: Any) -> None:
    """Queue the check of an uploaded version's weights."""
    tasks.check_version_soon(version)


@receiver(base_model_registered)
def check_base_model(base_model: int, **_: Any) -> None:
    """Queue the retrieval and check of a base model's files."""
    tasks.check_base_model_soon(base_model)


@receiver(cluster_changed)
def publish_and_reconcile(**_: Any) -> None:
    """Publish the routing table at once, and queue a run of the control loop."""
    tasks.publish_and_reconcile()


@receiver(routes_changed, dispatch_uid="publish")
def route_and_reconcile(alias: int, **_: Any) -> None:
    """Publish the alias' new route at once, and queue a run of the control loop."""
    tasks.route_and_reconcile(alias)


LEFT_TO_WEB.append(partial(routes_changed.disconnect, dispatch_uid="publish"))


@receiver(post_save, sender=ApiToken, dispatch_uid="publish token")
def publish_token(instance: ApiToken, **_: Any) -> None:
    """Publish the routing table after the commit if the token may infer, without waiting for the control loop."""
    if Scope.INFER in instance.scopes:
        transaction.on_commit(tasks.publish_soon)


LEFT_TO_WEB.append(partial(post_save.disconnect, sender=ApiToken, dispatch_uid="publish token"))


@receiver(token_approved)
def publish_approved_token(**_: Any) -> None:
    """Publish the routing table, since the approved token works from now on."""
    tasks.publish_soon()


@receiver([post_save, post_delete], sender=Membership)
def publish_tokens_of_member(instance: Membership, **_: Any) -> None:
    """Publish the routing table after the commit if a user whose roles changed owns inference tokens.

    The user's roles limit these tokens.
    """
    publish_tokens_of(instance.user_id)


@receiver(post_save, sender=User)
def publish_tokens_of_account(instance: User, update_fields: frozenset[str] | None = None, **_: Any) -> None:
    """Publish the routing table after the commit if an account that changed owns inference tokens.

    The account may have been closed. A change of only the last sign-in's time is ignored.
    """
    if update_fields != frozenset({"last_login"}):
        publish_tokens_of(instance.pk)


def publish_tokens_of(user_id: int) -> None:
    """Publish the routing table after the commit if the user owns inference tokens that were not revoked."""
    if ApiToken.objects.owned_by(user_id).filter(scopes__contains=[Scope.INFER], revoked_at=None).exists():
        transaction.on_commit(tasks.publish_soon)


@receiver(post_save, sender=Project)
def publish_project(created: bool, **_: Any) -> None:
    """Publish the whole table after a change of a project, whose settings decide which versions may be named.

    A new project is ignored.
    """
    if not created:
        transaction.on_commit(tasks.publish_soon)
