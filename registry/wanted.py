"""What a cluster should hold: what traffic needs, and who waits when the slots are too few."""

from __future__ import annotations

import logging
from itertools import islice

import redis
from django.conf import settings
from django.db.models import F, OuterRef, Q, QuerySet, Subquery
from django.utils.timezone import now

from registry.channels import wanted_now
from registry.models import AdapterVersion, AliasMove, Cluster, Response, Rollout, without_bodies

log = logging.getLogger(__name__)

Wanted = dict[str, AdapterVersion]


def wanted_versions(cluster: Cluster) -> Wanted:
    """Served name -> version, as many as a replica has slots; the least recently used wait for a request.

    First what requests wait for, then both sides of running rollouts, then aliases by their last answer, then what a
    rollback may need.
    """
    versions = without_bodies(AdapterVersion.objects.select_related("adapter__project"), "")
    active = Rollout.objects.active().filter(alias__cluster=cluster)
    since = now() - settings.ROLLBACK_WINDOW
    replaced = AliasMove.objects.filter(alias__cluster=cluster).replaced_since(since).values_list("version", flat=True)
    in_order = (
        versions.ready().trained_on(cluster.base_model).filter(served_name__in=asked_for()),
        versions.filter(Q(candidate_of__in=active) | Q(aliases__rollouts__in=active)).distinct(),
        by_last_use(versions.filter(aliases__cluster=cluster)),
        versions.filter(pk__in=list(replaced)),
    )
    return within_slots(cluster, {version.served_name: version for group in in_order for version in group})


def by_last_use(versions: QuerySet[AdapterVersion]) -> QuerySet[AdapterVersion]:
    """The latest answer first; those that never answered last."""
    latest = Response.objects.filter(version=OuterRef("pk")).order_by("-at").values("at")[:1]
    return versions.annotate(used_at=Subquery(latest)).order_by(F("used_at").desc(nulls_last=True), "pk")


def within_slots(cluster: Cluster, wanted: Wanted) -> Wanted:
    if len(wanted) > cluster.max_loras:
        log.info("%s needs %d versions, a replica has %d slots: the least recently used wait.",
                 cluster, len(wanted), cluster.max_loras)  # fmt: skip
    return dict(islice(wanted.items(), cluster.max_loras))


def asked_for() -> set[str]:
    """Cold versions that routers wait for; none while Valkey is away."""
    try:
        return wanted_now()
    except redis.RedisError as error:
        log.warning("Valkey does not answer (%s): cold versions are not loaded.", error)
        return set()
