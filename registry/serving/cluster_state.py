"""The desired and observed state of a cluster, for the REST API and pages."""

from __future__ import annotations

from typing import Any

from registry.models import Cluster, Replica
from registry.serving.desired_versions import desired_state


def cluster_state(cluster: Cluster) -> list[dict[str, Any]]:
    """Return a row for each replica: the versions it should hold, those it was seen to hold, and the difference.

    A replica that does not answer should hold the versions that every replica has, and a drained one none.
    """
    replicas, desired = list(cluster.replicas.all()), desired_state(cluster)
    for replica in replicas:
        replica.cluster = cluster
    placed = desired.placed(replica for replica in replicas if replica.is_healthy)
    everywhere = {name for name in desired.versions if desired.copies[name] is None}
    away = {replica.pk: set() if replica.draining_since else everywhere for replica in replicas}
    return [state_of(replica, set(placed.get(replica.pk, away[replica.pk]))) for replica in replicas]


def state_of(replica: Replica, desired: set[str]) -> dict[str, Any]:
    """Return the state of a replica as a dict for JSON; `desired` are the served names that it should hold.

    Besides its own fields it has lists of served names: those `desired`, `observed` on it, `missing`, held without
    being desired (`surplus`), and loaded there by others (`foreign`).
    """
    return {
        "id": replica.pk,
        "url": replica.url,
        "is_healthy": replica.is_healthy,
        "draining_since": replica.draining_since,
        "desired": sorted(desired),
        "observed": sorted(replica.loaded),
        "missing": sorted(desired - set(replica.loaded)),
        "surplus": sorted(set(replica.loaded) - desired),
        "foreign": sorted(set(replica.foreign) - set(replica.loaded)),
        "message": replica.message,
    }
