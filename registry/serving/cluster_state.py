"""Desired and observed state of a cluster, for the REST API and pages."""

from __future__ import annotations

from typing import Any

from registry.models import Cluster
from registry.serving.desired_versions import wanted_versions


def cluster_state(cluster: Cluster) -> list[dict[str, Any]]:
    """Return a row for each replica: the versions it should hold, those it was seen to hold, and the difference."""
    desired = set(wanted_versions(cluster))
    return [
        {
            "url": replica.url,
            "is_healthy": replica.is_healthy,
            "desired": sorted(desired),
            "observed": sorted(replica.loaded),
            "missing": sorted(desired - set(replica.loaded)),
            "surplus": sorted(set(replica.loaded) - desired),
            "message": replica.message,
        }
        for replica in cluster.replicas.all()
    ]
