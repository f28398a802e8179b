"""The routing table: what Postgres wants served where, and which replicas were seen to hold it."""

from __future__ import annotations

import logging
import time

import redis
from django.conf import settings
from django.db import connection
from django.utils.timezone import now

from adapterhub.accounts.models import ApiToken, Scope
from registry.models import Alias, Replica, Rollout, RolloutStatus
from registry.models.adapter import AdapterVersion
from serving_client.routing import AliasRoute, RolloutRoute, RoutingTable, TokenRoute, VersionRoute

KEY = "ah:routing-table"
WANTS = "ah:wants"
OUTCOMES = "ah:outcomes"
log = logging.getLogger(__name__)


def valkey() -> redis.Redis:
    """A connection to the channel that all routers listen to."""
    return redis.Redis.from_url(settings.REDIS_URL, socket_timeout=5)


def publish() -> RoutingTable:
    """Build the table and push it to the routers. They keep the last good one while Valkey is away."""
    table = build()
    connection_to_valkey = valkey()
    with connection_to_valkey:
        connection_to_valkey.set(KEY, table.to_json())
        connection_to_valkey.publish(KEY, str(table.generation))
    return table


def build() -> RoutingTable:
    """The table as the database says now."""
    aliases = list(Alias.objects.select_related("project", "version__adapter"))
    rollouts = Rollout.objects.active().select_related("candidate__adapter")
    running = {rollout.alias_id: rollout for rollout in rollouts if rollout.status == RolloutStatus.RUNNING}
    return RoutingTable(
        generation=next_generation(),
        published_at=time.time(),
        aliases={alias.name: alias_route(alias, running.get(alias.pk)) for alias in aliases},
        adapters={alias.version.adapter.slug: alias.version.served_name for alias in aliases},
        versions={version.served_name: version_route(version) for version in servable_versions()},
        tokens={token.pk: token_route(token) for token in infer_tokens()},
    )


def next_generation() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval('routing_table_generation')")
        return int(cursor.fetchone()[0])


def alias_route(alias: Alias, rollout: Rollout | None) -> AliasRoute:
    return AliasRoute(
        project=alias.project.slug,
        stable=alias.version.served_name,
        rollout=rollout and RolloutRoute(str(rollout.pk), rollout.candidate.served_name, rollout.weight, rollout.salt),
    )


def servable_versions() -> list[AdapterVersion]:
    """Ready versions of base models that some cluster serves."""
    ready = AdapterVersion.objects.ready().filter(adapter__base_model__clusters__isnull=False)
    return list(ready.select_related("adapter__project", "adapter__base_model").distinct())


def version_route(version: AdapterVersion) -> VersionRoute:
    holders = Replica.objects.holding(version.served_name).filter(cluster__base_model=version.adapter.base_model)
    return VersionRoute(
        project=version.project.slug,
        base=version.adapter.base_model.slug,
        digest=version.digest,
        replicas=tuple(holders.values_list("url", flat=True)),
    )


def infer_tokens() -> list[ApiToken]:
    return list(ApiToken.objects.usable().filter(scopes__contains=[Scope.INFER]).select_related("project"))


def token_route(token: ApiToken) -> TokenRoute:
    expires = token.expires_at.timestamp() if token.expires_at else None
    return TokenRoute(token.secret_hash, token.project.slug, tuple(token.scopes), expires)


def wanted_now() -> set[str]:
    """Cold versions that routers asked for within the last minute."""
    since = int((now().timestamp() - 60) * 1000)
    with valkey() as client:
        entries = client.xrange(WANTS, min=str(since))
    return {fields[b"version"].decode() for _, fields in entries}
