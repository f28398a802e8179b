"""The control loop: make every replica hold what is wanted, route to it, then unload the rest.

It compares the world with the database and never trusts an event, so that any run may be lost or repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import redis
from django.conf import settings
from django.db import connection, transaction
from django.utils.timezone import now

from adapterhub.accounts.actor import system
from adapterhub.accounts.models import ApiToken, Project, Scope
from adapterhub.api.errors import Conflict
from adapterhub.artifacts import ArtifactError
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry import visits
from registry.channels import ROUTING_TABLE, valkey
from registry.models import AdapterVersion, Alias, Cluster, Replica, Rollout, RolloutStatus
from registry.wanted import Wanted, wanted_versions
from serving_client.routing import (
    AliasRoute,
    CacheRule,
    Checks,
    RateLimit,
    RolloutRoute,
    RoutingTable,
    TokenRoute,
    VersionRoute,
)

RECONCILER = system("reconciler")
TOGETHER = 50
Told = TypeVar("Told")
log = logging.getLogger(__name__)


def reconcile() -> None:
    """One look at every cluster. Returns at once when another process is at it."""
    with only_one() as mine:
        if mine:
            for cluster in Cluster.objects.select_related("base_model", "project"):
                reconcile_cluster(cluster)


@contextmanager
def only_one() -> Iterator[bool]:
    """A session lock, so that two loops do not load the same adapter twice."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext('adapterhub.reconcile'))")
        mine = bool(cursor.fetchone()[0])
        try:
            yield mine
        finally:
            if mine:
                cursor.execute("SELECT pg_advisory_unlock(hashtext('adapterhub.reconcile'))")


@dataclass
class Look:
    """A replica that answered, and all that it holds by name, checked by us or not: served name -> path."""

    replica: Replica
    held: dict[str, str]

    def surplus(self, wanted: Wanted) -> set[str]:
        return set(self.held) - set(wanted)

    def lacks_room(self, wanted: Wanted) -> bool:
        needed = set(wanted) - set(self.held) - set(self.replica.refused)
        return bool(needed) and len(self.held) + len(needed) > self.replica.cluster.max_loras


def reconcile_cluster(cluster: Cluster) -> None:
    """Load what is wanted, then route to it, then unload the rest. Replicas are worked on at the same time."""
    wanted = wanted_versions(cluster)
    looks = observe(cluster)
    make_room([look for look in looks if look.lacks_room(wanted)], wanted)
    load_missing(looks, wanted)
    start_loaded_rollouts(cluster)
    if tell_routers():
        unload(looks, wanted)


def observe(cluster: Cluster) -> list[Look]:
    """Ask every replica what it holds; those that answer as a replica of this cluster should."""
    calls = [
        (replica, partial(visits.look, replica.url, cluster.base_model.slug)) for replica in cluster.replicas.all()
    ]
    looks = []
    for replica, seen in written(visits.each(calls)):
        if seen.trouble:
            replica.missed(seen.trouble)
        else:
            replica.saw(seen.reported, seen.engine_version)
            looks.append(Look(replica, dict(seen.reported)))
    Replica.objects.filter(pk__in=[look.replica.pk for look in looks]).update(seen_at=now())
    return looks


def written(told: Iterator[Told]) -> Iterator[Told]:
    """What replicas told; what is written down about them is committed `TOGETHER` at a time, while others still load.

    A commit for each would take longer than the calls. No transaction waits for a replica: the chain of the audit trail
    is not held for long.
    """
    while batch := list(islice(told, TOGETHER)):
        with transaction.atomic():
            yield from batch


def make_room(looks: list[Look], wanted: Wanted) -> None:
    """Slots are full: what nothing wants goes first, after the routers know that it does."""
    for look in looks:
        forget(look.replica, look.surplus(wanted))
    if looks and tell_routers():
        unload(looks, wanted)


def load_missing(looks: list[Look], wanted: Wanted) -> None:
    """Load each wanted version that a replica lacks or holds from another path; check what others loaded there."""
    folders = Folders()
    calls = [(look, partial(visits.push, look.replica.url, list(wishes(look, wanted, folders)))) for look in looks]
    for look, told in written(visits.each((look, call) for look, call in calls if call.args[1])):
        for result in told:
            take(look, wanted[result.name], result)


class Folders:
    """The verified copy of each version, made once a look for all replicas."""

    def __init__(self) -> None:
        self._found: dict[str, str | ArtifactError] = {}

    def of(self, version: AdapterVersion) -> str:
        """Raises ArtifactError."""
        if version.digest not in self._found:
            self._found[version.digest] = self._copied(version)
        found = self._found[version.digest]
        if isinstance(found, ArtifactError):
            raise found
        return found

    def _copied(self, version: AdapterVersion) -> str | ArtifactError:
        try:
            return str(version.served_folder())
        except ArtifactError as error:
            return error


def wishes(look: Look, wanted: Wanted, folders: Folders) -> Iterator[visits.Wish]:
    """What the replica should be asked for; a version whose copy is damaged is refused here."""
    for name, version in wanted.items():
        path = str(settings.SERVED_DIR / version.digest)
        if look.replica.loaded.get(name) == path or look.replica.refused.get(name):
            continue
        try:
            yield visits.Wish(name, folders.of(version), look.held.get(name))
        except ArtifactError as error:
            refuse(look.replica, version, str(error))


def take(look: Look, version: AdapterVersion, result: visits.Loaded) -> None:
    """Write down what became of a load; a version that was refused is never routed to."""
    if result.trouble:
        look.replica.missed(result.trouble)
    elif result.refusal:
        refuse(look.replica, version, result.refusal)
        look.held.pop(result.name, None)
    else:
        loaded(look.replica, version, result.path)
        look.held[result.name] = result.path


def loaded(replica: Replica, version: AdapterVersion, path: str) -> None:
    with transaction.atomic(savepoint=False):
        replica.loaded = {**replica.loaded, version.served_name: path}
        replica.save(update_fields=["loaded"])
        note(Tag.VERSION_LOADED, replica, version)


def refuse(replica: Replica, version: AdapterVersion, message: str) -> None:
    """Remember the refusal, so that the loop does not try for ever."""
    log.error("%s was not loaded on %s: %s", version, replica, message)
    with transaction.atomic():
        forget(replica, {version.served_name})
        replica.refused = {**replica.refused, version.served_name: message}
        replica.save(update_fields=["refused"])
        note(Tag.LOAD_REFUSED, replica, version, reason=message)


def note(tag: Tag, replica: Replica, version: AdapterVersion, reason: str = "") -> None:
    after = {"version": version.served_name, "digest": version.digest}
    AuditEvent.record(tag, replica, by=RECONCILER, project=version.project, after=after, reason=reason)


def unload(looks: list[Look], wanted: Wanted) -> None:
    """After the new table is out: nothing routes to these any more, and running answers end undisturbed."""
    leaving = [(look, look.surplus(wanted)) for look in looks]
    calls = [(look, partial(visits.remove, look.replica.url, names)) for look, names in leaving if names]
    for look, gone in visits.each(calls):
        look.held = {name: path for name, path in look.held.items() if name not in gone}
        forget(look.replica, gone)


def forget(replica: Replica, names: set[str]) -> None:
    """Route no more to these."""
    if names & set(replica.loaded):
        replica.loaded = {name: path for name, path in replica.loaded.items() if name not in names}
        replica.save(update_fields=["loaded"])


def tell_routers() -> bool:
    """Whether they know the table as it is now; what was not told may not be unloaded."""
    try:
        publish()
    except redis.RedisError as error:
        log.warning("Valkey does not answer (%s): the routers keep their table.", error)
        return False
    return True


def start_loaded_rollouts(cluster: Cluster) -> None:
    """A rollout starts when every healthy replica holds its candidate, and fails when all refuse it."""
    healthy = list(cluster.replicas.filter(is_healthy=True))
    for alias in cluster.aliases.all():
        for rollout in alias.rollouts.filter(status=RolloutStatus.LOADING).select_related("candidate"):
            try:
                start_or_fail(rollout, healthy)
            except Conflict as error:
                log.info("%s was moved by somebody else: %s", rollout, error)


def start_or_fail(rollout: Rollout, healthy: list[Replica]) -> None:
    """Raises Conflict when somebody moved it since it was read."""
    if healthy and all(rollout.candidate.served_name in replica.loaded for replica in healthy):
        rollout.started(by=RECONCILER)
    elif healthy and all(refusals := [refusal(replica, rollout) for replica in healthy]):
        rollout.refused(by=RECONCILER, reason=refusals[0])


def refusal(replica: Replica, rollout: Rollout) -> str:
    return str(replica.refused.get(rollout.candidate.served_name, ""))


def publish() -> RoutingTable:
    """Build the table and push it to the routers. They keep the last good one while Valkey is away."""
    table = routing_table()
    with valkey() as client:
        client.set(ROUTING_TABLE, table.to_json())
        client.publish(ROUTING_TABLE, str(table.generation))
    return table


def routing_table() -> RoutingTable:
    """The table as the database says now."""
    aliases = list(Alias.objects.select_related("project", "version__adapter"))
    serving = Rollout.objects.serving().select_related("candidate__adapter")
    running = {rollout.alias_id: rollout for rollout in serving}
    return RoutingTable(
        generation=next_generation(),
        published_at=time.time(),
        aliases={alias.name: alias_route(alias, running.get(alias.pk)) for alias in aliases},
        adapters={alias.version.adapter.slug: alias.version.served_name for alias in aliases},
        versions=version_routes(),
        tokens={token.pk: token_route(token) for token in infer_tokens()},
        limits=rate_limits(),
    )


def rate_limits() -> dict[str, RateLimit]:
    """The same for each project; after a rest it may send two seconds' worth at once."""
    per_s = settings.PROJECT_REQUESTS_PER_S
    limit = RateLimit(per_s, 2 * per_s)
    return dict.fromkeys(Project.objects.values_list("slug", flat=True), limit) if per_s > 0 else {}


def next_generation() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval('routing_table_generation')")
        return int(cursor.fetchone()[0])


def alias_route(alias: Alias, rollout: Rollout | None) -> AliasRoute:
    return AliasRoute(
        project=alias.project.slug,
        stable=alias.version.served_name,
        rollout=rollout and rollout_route(rollout),
        cache=CacheRule(**cache) if (cache := alias.policy.get("cache")) else None,
    )


def rollout_route(rollout: Rollout) -> RolloutRoute:
    return RolloutRoute(
        id=str(rollout.pk),
        candidate=rollout.candidate.served_name,
        weight=rollout.weight,
        salt=rollout.salt,
        shadow=rollout.shadow,
        checks=Checks(**rollout.checks),
        **rollout.targeting,
    )


def version_routes() -> dict[str, VersionRoute]:
    """Ready versions of base models that some cluster serves; there may be many, so only what a route needs is read."""
    held = holders()
    ready = AdapterVersion.objects.ready().filter(adapter__base_model__in=Cluster.objects.values("base_model"))
    columns = ("served_name", "digest", "adapter__project__slug", "adapter__base_model__slug", "adapter__base_model")
    return {
        name: VersionRoute(project, base, digest, tuple(held.get((base_pk, name), ())))
        for name, digest, project, base, base_pk in ready.values_list(*columns)
    }


def holders() -> dict[tuple[int, str], list[str]]:
    """(base model, served name) -> addresses of the healthy replicas that were seen to hold it.

    One that comes and goes is left out as long as another holds the version.
    """
    steady: dict[tuple[int, str], list[str]] = {}
    resting: dict[tuple[int, str], list[str]] = {}
    for replica in Replica.objects.filter(is_healthy=True).select_related("cluster"):
        for name in replica.loaded:
            found = resting if replica.is_resting else steady
            found.setdefault((replica.cluster.base_model_id, name), []).append(replica.url)
    return resting | steady


def infer_tokens() -> list[ApiToken]:
    found = ApiToken.objects.usable().filter(scopes__contains=[Scope.INFER]).select_related("project", "account")
    return [token for token in found.prefetch_related("account__memberships") if Scope.INFER in token.scopes_now()]


def token_route(token: ApiToken) -> TokenRoute:
    expires = token.expires_at.timestamp() if token.expires_at else None
    return TokenRoute(token.secret_hash, token.project.slug, tuple(sorted(token.scopes_now())), expires)
