"""The versions that a cluster should hold: those that traffic needs, cut to the number of adapter slots."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import redis
from django.conf import settings
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.utils.timezone import now

from registry.models import AdapterVersion, Alias, AliasMove, Cluster, Replica, Response, Rollout, without_bodies
from registry.models.alias_policy import copies as alias_copies
from registry.serving.placement import place
from registry.serving.slot_shares import parted, shared_out
from registry.serving.valkey import still_open, wanted_now

log = logging.getLogger(__name__)

Wanted = dict[str, AdapterVersion]
NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Desired:
    """The desired content of a cluster.

    `versions` are by served name, the most important first. `copies` is the number of replicas that
    should hold each, None for all.
    """

    versions: Wanted
    copies: Mapping[str, int | None]

    def placed(self, replicas: Iterable[Replica]) -> dict[int, Wanted]:
        """Return the versions that each of these replicas should hold: replica's key -> served name -> version.

        Adapters that the control loop did not load take slots, too. A drained replica should hold nothing, and no
        replica a version that it refused.
        """
        rooms, barred = {}, {}
        for replica in replicas:
            taken = set(replica.foreign) - set(self.versions)
            rooms[replica.pk] = 0 if replica.draining_since else max(0, replica.cluster.max_loras - len(taken))
            barred[replica.pk] = set(replica.refused)
        copied = ((name, self.copies[name]) for name in self.versions)
        return {pk: {name: self.versions[name] for name in names} for pk, names in place(copied, rooms, barred).items()}


def wanted_versions(cluster: Cluster) -> Wanted:
    """Return the versions that some replica of the cluster should hold, by served name."""
    return desired_state(cluster).versions


def desired_state(cluster: Cluster) -> Desired:
    """Return what the cluster should hold, cut to its slots; each project gets its own share first.

    The order of priority is: what protected aliases serve, which is pinned; both sides of active rollouts; versions
    that requests wait for, the longest waiting first; what aliases serve or requests named, the latest used first;
    versions that a rollback may need. The rest wait until a request asks for them.
    """
    versions = without_bodies(AdapterVersion.objects.select_related("adapter__project"), "")
    aliases = cluster.served_aliases()
    active = Rollout.objects.active().filter(alias__in=aliases)
    # Selected by keys: a single condition over joins would make the database scan every version.
    sides = active.values("candidate").union(Alias.objects.filter(rollouts__in=active).values("version"))
    since = now() - settings.ROLLBACK_WINDOW
    replaced = AliasMove.objects.filter(alias__in=aliases).replaced_since(since).values_list("version", flat=True)
    usable = list(cluster.replicas.all().usable())
    requested, waiting = requested_versions(usable)
    known = versions.ready().servable_on(cluster).filter(served_name__in=requested)
    of_aliases = versions.filter(aliases__in=aliases).annotate(policy=F("aliases__policy"))
    serving, in_rollouts = list(used(of_aliases)), list(versions.filter(pk__in=sides))
    policies = [(version.served_name, getattr(version, "policy", {})) for version in serving]
    pinned = {name for name, policy in policies if policy.get("quorum")}
    in_order = (
        [version for version in serving if version.served_name in pinned],
        in_rollouts,
        sorted(known.filter(served_name__in=waiting), key=lambda version: waiting.index(version.served_name)),
        by_last_use([*serving, *known], requested),
        versions.filter(pk__in=list(replaced)),
    )
    ordered = {version.served_name: version for group in in_order for version in group}
    candidates = active.values_list("candidate__served_name", "alias__policy") if in_rollouts else ()
    known_copies = copies_wanted([*policies, *candidates])
    copies = {name: known_copies.get(name, known_copies.get(line_of_work(name))) for name in ordered}
    return Desired(within_slots(cluster, ordered, copies, max(1, len(usable))), copies)


def used(versions: QuerySet[AdapterVersion]) -> QuerySet[AdapterVersion]:
    """Return the versions by primary key, each with `used_at`: the time of its latest answer, None without one."""
    latest = Response.objects.filter(version=OuterRef("pk")).order_by("-at").values("at")[:1]
    return versions.annotate(used_at=Subquery(latest)).order_by("pk")


def by_last_use(versions: list[AdapterVersion], requested: dict[str, datetime]) -> list[AdapterVersion]:
    """Return the versions by their latest request or answer, newest first; versions without either come last.

    `requested` maps served names to the time of the latest request.
    """

    def last(version: AdapterVersion) -> datetime:
        return max(getattr(version, "used_at", None) or NEVER, requested.get(version.served_name, NEVER))

    return sorted(versions, key=last, reverse=True)


def within_slots(cluster: Cluster, wanted: Wanted, copies: Mapping[str, int | None], replicas: int) -> Wanted:
    """Return the first versions of each project within its share, and further ones where slots are left.

    `wanted` is ordered by priority. `copies` has the number of replicas that should hold each version, None for all;
    `replicas` is the number that there are. The cluster's slots are those of all its replicas together, and a version
    takes one for each copy.
    """
    accepted = (grant for grant in cluster.grants.all() if grant.project_id and not grant.withdrawn_at)
    parts = parted(cluster.max_loras, cluster.project.slug, {grant.offered_to: grant.slots for grant in accepted})
    candidates = [
        (name, version.project.slug, min(copies.get(name) or replicas, replicas)) for name, version in wanted.items()
    ]
    most = {project: slots * replicas for project, slots in parts.items()}
    chosen = shared_out(candidates, most, cluster.max_loras * replicas)
    if len(chosen) < len(wanted):
        log.info("%s needs %d versions and has slots for %d: the others wait.", cluster, len(wanted), len(chosen))
    return {name: wanted[name] for name in chosen}


def copies_wanted(policies: Iterable[tuple[str, dict[str, Any]]]) -> dict[str, int | None]:
    """Map each served name to the number of replicas that should hold the version; None for all.

    `policies` are pairs of a served name and the policy of an alias that serves it; of several policies the largest
    number counts. The common part of an adapter's served names (`eu.dora`) is a key, too, with the largest number of
    its versions, which counts for versions that no alias serves.
    """
    counts: dict[str, list[int | None]] = {}
    for name, policy in policies:
        for key in (name, line_of_work(name)):
            counts.setdefault(key, []).append(alias_copies(policy))
    return {key: most_of(each) for key, each in counts.items()}


def most_of(counts: list[int | None]) -> int | None:
    """Return the largest of the counts, which must not be empty; None means all replicas and is above every number."""
    numbers = [count for count in counts if count is not None]
    return max(numbers) if len(numbers) == len(counts) else None


def line_of_work(served_name: str) -> str:
    """Return the part of a served name that all versions of its adapter share: `eu.dora` of `eu.dora.v3-0123456789`."""
    return served_name.rpartition(".v")[0]


def waiting_versions(cluster: Cluster) -> list[str]:
    """Return the served names that requests wait for and that the cluster may hold, the longest waiting first.

    Empty, with a warning in the log, if Valkey is down.
    """
    _, waiting = requested_versions(cluster.replicas.all().usable())
    servable = AdapterVersion.objects.ready().servable_on(cluster).filter(served_name__in=waiting)
    names = set(servable.values_list("served_name", flat=True)) if waiting else set()
    return [name for name in waiting if name in names]


def requested_versions(replicas: Iterable[Replica]) -> tuple[dict[str, datetime], list[str]]:
    """Return (requested, waiting): what routers requested in the last minute, and what of it no replica holds yet.

    `requested` maps served names to the time of the latest request; `waiting` lists served names, the longest waiting
    first. Both are empty, with a warning in the log, if Valkey is down.
    """
    loaded = {name for replica in replicas for name in replica.loaded}
    try:
        requested = wanted_now()
        return {name: times[-1] for name, times in requested.items()}, still_open(requested, loaded)
    except redis.RedisError as error:
        log.warning("Valkey does not answer (%s): cold versions are not loaded.", error)
        return {}, []
