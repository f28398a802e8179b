"""Open alarms that need a person, derived from the present state, so that an alarm ends when its cause ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from django.utils.timezone import now

from adapterhub.core.counts import counted
from registry.models import Cluster, Replica

RANK = re.compile(r"max[_-]lora[_-]rank")
DAMAGED = re.compile(r"files were changed|not in (?:the store|bucket)|signature|have been changed")

# A source that has not answered for this long is an alarm.
STALLED = timedelta(minutes=2)


@dataclass(frozen=True)
class Alarm:
    """An alarm: `text` says what happened and `remedy` what to do.

    `kind` is its code, such as `load_refused`; `cluster` is a slug; `subject` is the replica's URL, the served name of
    the refused version, or the address of the source of replicas.
    """

    kind: str
    cluster: str
    subject: str
    text: str
    remedy: str

    def as_dict(self) -> dict[str, Any]:
        """Return the alarm as a dict for JSON."""
        return asdict(self)


def open_alarms(replicas: Iterable[Replica]) -> list[Alarm]:
    """Return the open alarms of these replicas: unreachable, refused loads, what others loaded, stalled sources."""
    rows = list(replicas)
    own = [alarm for replica in rows for alarm in (*unreachable(replica), *refusals(replica), *strangers(replica))]
    clusters = {replica.cluster_id: replica.cluster for replica in rows}
    return own + [alarm for cluster in clusters.values() for alarm in stalled(cluster)]


def stalled(cluster: Cluster) -> Iterator[Alarm]:
    """Yield an alarm if the cluster has a source of replicas that has not answered for STALLED, or was never asked."""
    if cluster.discovery and (cluster.discovered_at is None or now() - cluster.discovered_at > STALLED):
        reason = cluster.discovery_message or "it was not asked."
        yield Alarm(
            "discovery_stalled",
            cluster.slug,
            cluster.discovery,
            f"Nobody knows which replicas {cluster.discovery} names: {reason}",
            "Its replicas serve on, but none comes or goes. Mend the source, or start `manage.py discover`.",
        )


def unreachable(replica: Replica) -> Iterator[Alarm]:
    """Yield an alarm if the replica does not answer; none if it is drained or was not asked yet."""
    if not replica.is_healthy and replica.message and not replica.draining_since:
        yield Alarm(
            "replica_unreachable",
            replica.cluster.slug,
            replica.url,
            f"{replica.url} is out of the routing table: {replica.message}",
            "Start the engine again, or correct its address on its cluster's page "
            f"(REST: PATCH replicas/{replica.pk}/): it gets traffic once it has loaded its versions. "
            "Drain or delete it if it will not come back.",
        )


def strangers(replica: Replica) -> Iterator[Alarm]:
    """Yield an alarm if the replica holds adapters that the control loop did not load."""
    if names := sorted(set(replica.foreign) - set(replica.loaded)):
        yield Alarm(
            "foreign_versions",
            replica.cluster.slug,
            replica.url,
            f"{replica.url} holds {counted(len(names), 'adapter')} that AdapterHub did not load: "
            f"{', '.join(names[:5])}.",
            "They take slots and stay: unload them at the engine, or find out which other control plane uses it, and "
            "give each engine to one.",
        )


def refusals(replica: Replica) -> Iterator[Alarm]:
    """Yield an alarm for each version that the replica refused."""
    for served_name, reason in sorted(replica.refused.items()):
        yield Alarm(
            "load_refused",
            replica.cluster.slug,
            served_name,
            f"{served_name} was not loaded on {replica.url}: {reason}",
            remedy_of(reason),
        )


def remedy_of(reason: str) -> str:
    """Return a text on what to do about a refused load, by the reason that the replica or the store gave."""
    if RANK.search(reason):
        return (
            "The engine was started with a lower highest rank than the cluster declares. Start it with the cluster's "
            "max_lora_rank, or lower that; or compress the version to the engine's rank."
        )
    if DAMAGED.search(reason):
        return (
            "The previous version keeps serving. Restore the stored files or publish a new version, then restart the "
            "replica to try again."
        )
    return "The previous version keeps serving. Mend what the reason names, then restart the replica to try again."
