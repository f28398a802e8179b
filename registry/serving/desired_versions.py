"""Desired versions of a cluster: those that traffic needs, cut to the number of adapter slots."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from itertools import islice

import redis
from django.conf import settings
from django.db.models import OuterRef, QuerySet, Subquery
from django.utils.timezone import now

from registry.models import AdapterVersion, Alias, AliasMove, Cluster, Response, Rollout, without_bodies
from registry.serving.valkey import still_open, wanted_now

log = logging.getLogger(__name__)

Wanted = dict[str, AdapterVersion]
NEVER = datetime.min.replace(tzinfo=UTC)


def wanted_versions(cluster: Cluster) -> Wanted:
    """Return the versions that the cluster's replicas should hold, by served name.

    At most as many as a replica has slots.

    The order of priority is: both sides of active rollouts; versions that requests wait for, in their order; versions
    requested or used last; versions that a rollback may need. The rest wait until a request asks for them.
    """
    versions = without_bodies(AdapterVersion.objects.select_related("adapter__project"), "")
    aliases = cluster.served_aliases()
    active = Rollout.objects.active().filter(alias__in=aliases)
    # Selected by keys: a single condition over joins would make the database scan every version.
    sides = active.values("candidate").union(Alias.objects.filter(rollouts__in=active).values("version"))
    since = now() - settings.ROLLBACK_WINDOW
    replaced = AliasMove.objects.filter(alias__in=aliases).replaced_since(since).values_list("version", flat=True)
    requested, waiting = requested_versions(cluster)
    known = versions.ready().servable_on(cluster).filter(served_name__in=requested)
    in_order = (
        versions.filter(pk__in=sides),
        sorted(known.filter(served_name__in=waiting), key=lambda version: waiting.index(version.served_name)),
        by_last_use([*used(versions.filter(aliases__in=aliases)), *known], requested),
        versions.filter(pk__in=list(replaced)),
    )
    return within_slots(cluster, {version.served_name: version for group in in_order for version in group})


def used(versions: QuerySet[AdapterVersion]) -> QuerySet[AdapterVersion]:
    """Annotate the versions with `used_at`, the time of their latest answer."""
    latest = Response.objects.filter(version=OuterRef("pk")).order_by("-at").values("at")[:1]
    return versions.annotate(used_at=Subquery(latest)).order_by("pk")


def by_last_use(versions: list[AdapterVersion], requested: dict[str, datetime]) -> list[AdapterVersion]:
    """Return the versions by their latest request or answer, newest first; versions without any come last."""

    def last(version: AdapterVersion) -> datetime:
        return max(getattr(version, "used_at", None) or NEVER, requested.get(version.served_name, NEVER))

    return sorted(versions, key=last, reverse=True)


def within_slots(cluster: Cluster, wanted: Wanted) -> Wanted:
    """Return the first versions, as many as a replica has slots; the log says if some are left out."""
    if len(wanted) > cluster.max_loras:
        log.info(
            "%s needs %d versions, a replica has %d slots: the least recently used wait.",
            cluster,
            len(wanted),
            cluster.max_loras,
        )
    return dict(islice(wanted.items(), cluster.max_loras))


def requested_versions(cluster: Cluster) -> tuple[dict[str, datetime], list[str]]:
    """Return the versions that routers requested lately and those that still wait; both empty if Valkey is down."""
    loaded = {name for replica in cluster.replicas.all() if replica.is_healthy for name in replica.loaded}
    try:
        requested = wanted_now()
        return requested, still_open(requested, loaded)
    except redis.RedisError as error:
        log.warning("Valkey does not answer (%s): cold versions are not loaded.", error)
        return {}, []
