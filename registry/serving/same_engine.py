"""Detection of engines that are registered twice, under addresses that do not show it, by a marker adapter.

A replica may hold adapters from our folder that were not loaded through it. Then it may be the engine of another
replica (behind a second name or an address translation), or a replica that was deleted and added again. An adapter
loaded under a new name, the marker, decides: it is listed at every address of the same engine.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping

from django.conf import settings

from registry.models import Replica
from registry.models.fleet.replica import MARKER
from registry.serving import replica_calls
from registry.serving.replica_calls import Engine

TWIN = "It is the engine of another replica under another address: give each engine one address."


class EndpointIndex:
    """The endpoints of all replicas, of every cluster: as stored when the index was made, and as noted since.

    A replica's own question to the database would cost a scan of all replicas for each of them.
    """

    def __init__(self) -> None:
        self._replicas: dict[str, set[int]] = {}
        for pk, endpoints in Replica.objects.values_list("pk", "endpoints"):
            self._add(pk, endpoints)

    def has_older(self, replica: Replica, endpoints: Iterable[str]) -> bool:
        """Return True if an older replica has one of these endpoints, and so is the same engine."""
        return any(pk < replica.pk for endpoint in endpoints for pk in self._replicas.get(endpoint, ()))

    def note(self, replica: Replica, endpoints: Iterable[str]) -> None:
        """Replace the endpoints that the index has for the replica by these; nothing is stored."""
        for endpoint in replica.endpoints:
            self._replicas.get(endpoint, set()).discard(replica.pk)
        self._add(replica.pk, endpoints)

    def _add(self, pk: int, endpoints: Iterable[str]) -> None:
        for endpoint in endpoints:
            self._replicas.setdefault(endpoint, set()).add(pk)


def tell_same_engines(reports: Mapping[Replica, tuple[Engine, dict[str, str]]]) -> set[Replica]:
    """Return the replicas that are the engine of an older one, and mark each of them unhealthy.

    `reports` are the engines and their adapters (served name -> path) of replicas that answered. On each of the others,
    the adapters from our folder that it holds are recorded as loaded by us.
    """
    twins = set()
    for replica, (engine, adapters) in reports.items():
        strangers = {name: adapters[name] for name in replica.foreign if is_ours(adapters[name])}
        if not strangers:
            continue
        older = Replica.objects.filter(pk__lt=replica.pk, is_healthy=True, loaded__has_any_keys=[*strangers])
        others = list(older.select_related("cluster"))
        if others:
            match = marked_elsewhere(engine, others, next(iter(strangers.values())))
            if match:
                replica.is_engine_of(match)
                replica.missed(TWIN)
                twins.add(replica)
                continue
        # They are its own: it was a replica before, or the loop died between a load and its record.
        replica.pushed = sorted({*replica.pushed, *strangers})
        replica.foreign = sorted(set(replica.foreign) - set(strangers))
        replica.keep("pushed", "foreign")
    return twins


def is_ours(path: str) -> bool:
    """Return True for a path in the folder of served versions, from which only the control loop loads."""
    return path.startswith(f"{settings.SERVED_DIR}/")


def marked_elsewhere(engine: Engine, others: list[Replica], path: str) -> Replica | None:
    """Load the path under a new name for a moment; return the replica whose address lists that name, or None."""
    engines = [Engine(other.url, other.cluster.engine_key) for other in others]
    place = replica_calls.where_marked(engine, f"{MARKER}{secrets.token_hex(8)}", path, engines)
    return None if place is None else others[place]
