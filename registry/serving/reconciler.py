"""The control loop: load the desired versions on every replica, route to them, then unload the rest.

It compares the replicas with the database and relies on no event, so that any run may be lost or repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import redis
from django.conf import settings
from django.db import transaction
from django.utils.timezone import now

from adapterhub.artifacts import ArtifactError
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.models import AdapterVersion, Cluster, Replica
from registry.models.fleet.replica import MARKER
from registry.serving import replica_calls
from registry.serving.desired_versions import Wanted, desired_state
from registry.serving.loaded_rollouts import RECONCILER, start_loaded_rollouts, take_back_refused_moves
from registry.serving.replica_calls import Engine
from registry.serving.routing_table import publish
from registry.serving.same_engine import TWIN, EndpointIndex, tell_same_engines
from registry.serving.served_folders import Folders, copy_of
from registry.serving.session_lock import session_lock

# No load or unload of a round begins later than this. The last one may take as long as its call's timeout. A replica
# that is filled from empty takes several rounds, and what requests wait for meanwhile comes first in each.
ROUND_S = 10.0
# While replicas still load, what is loaded is published this often, but takes at most a tenth of the time.
PUBLISH_EVERY_S = 0.1
PUBLISH_SHARE = 0.1
log = logging.getLogger(__name__)


def reconcile() -> None:
    """Reconcile every cluster once, one after another; clusters that another process is reconciling are skipped."""
    for cluster in Cluster.objects.select_related("base_model", "project"):
        reconcile_alone(cluster)


def reconcile_alone(cluster: Cluster) -> bool:
    """Reconcile the cluster and record when, unless another thread or process is doing so.

    Return True if it was done.
    """
    # Two loops never load the same adapter into the same replica.
    with session_lock("adapterhub.reconcile", cluster.pk) as has_lock:
        if has_lock:
            reconcile_cluster(cluster)
            Cluster.objects.filter(pk=cluster.pk).update(reconciled_at=now())
    return has_lock


@dataclass
class Observation:
    """A replica that answered, with all adapters that it holds, probed by us or not (served name -> path).

    `wanted` is what it should hold, by served name; `vanished` are the names that it held in the round before and now
    holds from another path or not at all.
    """

    replica: Replica
    engine: Engine
    adapters: dict[str, str]
    vanished: set[str] = field(default_factory=set)
    wanted: Wanted = field(default_factory=dict)

    def surplus(self) -> set[str]:
        """Return the names to unload: those that the control loop loaded and that are not wanted, and its markers.

        Markers are names under which it loads an adapter for a moment, to see if two addresses are one engine. Adapters
        that others loaded stay.
        """
        markers = {name for name in self.adapters if name.startswith(MARKER)}
        return markers | (set(self.replica.pushed) & set(self.adapters)) - set(self.wanted)

    def lacks_room(self) -> bool:
        """Return True if the missing versions do not fit beside those that the replica holds."""
        needed = set(self.wanted) - set(self.adapters) - set(self.replica.refused)
        return bool(needed) and len(self.adapters) + len(needed) > self.replica.cluster.max_loras


def reconcile_cluster(cluster: Cluster) -> None:
    """Load the desired versions, then route to them, then unload the rest; replicas are handled in parallel.

    A round starts no call to a replica after ROUND_S seconds, so that a replica that hangs cannot hold the cluster for
    long.
    """
    until = time.monotonic() + ROUND_S
    observations = observe(cluster)
    # Read after the replicas: a cluster has the slots of those that answer.
    placed = desired_state(cluster).placed(observation.replica for observation in observations)
    for observation in observations:
        observation.wanted = placed[observation.replica.pk]
    if full := [observation for observation in observations if observation.lacks_room()]:
        take_out_of_use(full, until)
    load_missing(observations, until)
    start_loaded_rollouts(cluster, placed)
    take_back_refused_moves(cluster)
    take_out_of_use(observations, until)


def observe(cluster: Cluster) -> list[Observation]:
    """Ask every replica what it holds, record it, and return those that serve this cluster's base model.

    A replica that turns out to be the engine of another one is left out.
    """
    engines = {replica: Engine(replica.url, cluster.engine_key) for replica in cluster.replicas.all()}
    calls = [
        (replica, partial(replica_calls.inspect, engine, cluster.base_model.slug, settings.ENGINE_HOSTS))
        for replica, engine in engines.items()
    ]
    observations, index = [], EndpointIndex()
    for batch in replica_calls.each(calls):
        # One commit for each result would take longer than the calls. No transaction waits for a replica, so that the
        # chain of the audit trail is not locked for long.
        with transaction.atomic():
            for replica, report in batch:
                replica.cluster = cluster
                vanished = {name for name, path in replica.loaded.items() if report.reported.get(name) != path}
                if recorded(replica, report, index):
                    observations.append(Observation(replica, engines[replica], dict(report.reported), vanished))
    twins = tell_same_engines({each.replica: (each.engine, each.adapters) for each in observations})
    own = [observation for observation in observations if observation.replica not in twins]
    Replica.objects.filter(pk__in=[observation.replica.pk for observation in own]).update(seen_at=now())
    return own


def recorded(replica: Replica, report: replica_calls.ReplicaReport, index: EndpointIndex) -> bool:
    """Store a replica's report; return True if it reports no problem and is not the engine of an older replica.

    Then it is marked healthy with what it holds, and `index` gets its endpoints. Otherwise it is marked unhealthy with
    the reason.
    """
    if report.problem:
        missed(replica, report.problem, report.engine_text)
    elif replica.twin_of_id or index.has_older(replica, report.endpoints):
        replica.missed(TWIN)
    else:
        index.note(replica, report.endpoints)
        replica.saw(report.reported, report.engine_version, report.endpoints, report.max_length)
        return True
    return False


def take_out_of_use(observations: list[Observation], until: float) -> None:
    """Remove surplus versions from the routing table, publish it, and unload them once it is published.

    Nothing is unloaded if Valkey is down. `until` is the last moment (of time.monotonic()) to begin an unload.
    """
    for observation in observations:
        forget(observation.replica, observation.surplus())
    if tell_routers():
        unload(observations, until)


def load_missing(observations: list[Observation], until: float) -> None:
    """Load each desired version that a replica lacks or holds from another path, and probe those that others loaded.

    Versions that the replica refused before are not tried again. What is loaded is published while further loads go
    on. No load begins after `until` (of time.monotonic()).
    """
    folders = Folders()
    folders.fetch(version for observation in observations for version in lacking(observation).values())
    requests = [(observation, list(load_requests(observation, folders))) for observation in observations]
    calls = [
        (observation, partial(replica_calls.push, observation.engine, missing, until))
        for observation, missing in requests
        if missing
    ]
    claim((observation.replica, {request.name for request in missing}) for observation, missing in requests)
    next_at = time.monotonic() + PUBLISH_EVERY_S
    for batch in replica_calls.stream(calls):
        with transaction.atomic():
            take_all(batch)
        if (began := time.monotonic()) > next_at:
            tell_routers()
            ended = time.monotonic()
            next_at = ended + max(PUBLISH_EVERY_S, (ended - began) / PUBLISH_SHARE)


def claim(loads: Iterable[tuple[Replica, set[str]]]) -> None:
    """Store which names are about to be loaded, before the loads are sent: only these may be unloaded again."""
    claiming = []
    for replica, names in loads:
        if not names <= set(replica.pushed):
            replica.pushed = sorted({*replica.pushed, *names})
            claiming.append(replica)
    Replica.keep_all(claiming, "pushed")


def load_requests(observation: Observation, folders: Folders) -> Iterator[replica_calls.LoadRequest]:
    """Yield the loads that the replica needs.

    A version with damaged files is recorded as refused instead; one that cannot be copied now is skipped.
    """
    for name, version in lacking(observation).items():
        try:
            is_repeated = name in observation.vanished
            yield replica_calls.LoadRequest(name, folders.of(version), observation.adapters.get(name), is_repeated)
        except ArtifactError as error:
            refuse(observation.replica, version, str(error))
        except OSError:
            # The disk is full or the store is unreachable: the next run retries, and loaded versions keep serving.
            continue


def lacking(observation: Observation) -> Wanted:
    """Return the wanted versions that the replica neither holds from their own path nor has refused."""
    replica = observation.replica
    return {
        name: version
        for name, version in observation.wanted.items()
        if replica.loaded.get(name) != str(copy_of(version)) and not replica.refused.get(name)
    }


def take_all(batch: Iterable[tuple[Observation, replica_calls.Loaded]]) -> None:
    """Record the results of loads on the replicas and in the audit trail, and in the observations."""
    taken = []
    for observation, result in batch:
        version = observation.wanted[result.name]
        if take(observation, version, result):
            taken.append((observation.replica, version))
    Replica.keep_all({replica for replica, _ in taken}, "loaded")
    for replica, version in taken:
        note(Tag.VERSION_LOADED, replica, version)


def take(observation: Observation, version: AdapterVersion, result: replica_calls.Loaded) -> bool:
    """Apply the result of a load: the replica holds the version, refused it for good, or does not answer.

    The observation is updated, too. A refusal and a missing answer are stored at once. Return True if the replica holds
    the version, which the caller stores and records.
    """
    if result.problem:
        missed(observation.replica, result.problem, result.engine_text)
    elif result.refusal:
        refuse(observation.replica, version, result.refusal, engine_text=result.engine_text)
        observation.adapters.pop(result.name, None)
    else:
        observation.adapters[result.name] = result.path
        observation.replica.loaded = {**observation.replica.loaded, result.name: result.path}
        return True
    return False


def missed(replica: Replica, problem: str, engine_text: str) -> None:
    """Mark the replica unhealthy with the problem.

    `engine_text`, the engine's message, is logged once for each problem.
    """
    if engine_text and (replica.is_healthy or replica.message != problem):
        log.warning("%s is away: %s", replica, engine_text)
    replica.missed(problem)


def refuse(replica: Replica, version: AdapterVersion, message: str, *, engine_text: str = "") -> None:
    """Record on the replica and in the audit trail that it refused a version.

    The loop does not load it there again until the replica has been away. `message` is the reason that is stored and
    shown; `engine_text` is the engine's message, which goes only into the log. Routers no longer use the version there
    from the next routing table on.
    """
    log.error("%s was not loaded on %s: %s", version, replica, engine_text or message)
    with transaction.atomic():
        forget(replica, {version.served_name})
        replica.refused = {**replica.refused, version.served_name: message}
        replica.keep("refused")
        note(Tag.LOAD_REFUSED, replica, version, reason=message)


def note(tag: Tag, replica: Replica, version: AdapterVersion, reason: str = "") -> None:
    """Record an audit event about a replica and a version."""
    after = {"version": version.served_name, "digest": version.digest}
    AuditEvent.record(tag, replica, by=RECONCILER, project=version.project, after=after, reason=reason)


def unload(observations: list[Observation], until: float) -> None:
    """Unload surplus versions. Call it after the new table is published, so that no request is routed to them.

    An answer in progress is finished with its version. No unload begins after `until` (of time.monotonic()).
    """
    leaving = [(observation, observation.surplus()) for observation in observations]
    calls = [
        (observation, partial(replica_calls.remove, observation.engine, names, until))
        for observation, names in leaving
        if names
    ]
    for batch in replica_calls.each(calls):
        for observation, removed in batch:
            observation.adapters = {name: path for name, path in observation.adapters.items() if name not in removed}


def forget(replica: Replica, names: set[str]) -> None:
    """Record that routers may no longer use these names on the replica, from the next routing table on."""
    if names & set(replica.loaded):
        replica.loaded = {name: path for name, path in replica.loaded.items() if name not in names}
        replica.keep("loaded")


def tell_routers() -> bool:
    """Publish the routing table and return True; False, with a warning in the log, if Valkey is down.

    The routers then keep their table, so nothing may be unloaded.
    """
    try:
        publish()
    except redis.RedisError as error:
        log.warning("Valkey does not answer (%s): the routers keep their table.", error)
        return False
    return True
