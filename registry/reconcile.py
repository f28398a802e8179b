"""The control loop: make every replica hold what is wanted, route to it, then unload the rest.

It compares the world with the database and never trusts an event, so that any run may be lost or repeated.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from django.conf import settings
from django.db import connection, transaction
from django.utils.timezone import now

from adapterhub.accounts.actor import system
from adapterhub.accounts.models import ApiToken, Scope
from adapterhub.artifacts import ArtifactError
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.channels import ROUTING_TABLE, valkey, wanted_now
from registry.models import AdapterVersion, Alias, AliasMove, Cluster, Replica, Rollout, RolloutStatus
from serving_client import AdapterAlreadyLoaded, AdapterNotLoaded, EngineClient, EngineError, EngineRejected
from serving_client.routing import AliasRoute, RolloutRoute, RoutingTable, TokenRoute, VersionRoute

RECONCILER = system("reconciler")
PROBE = "The purpose of this text is to be long enough that a broken adapter shows itself. " * 8
log = logging.getLogger(__name__)

Wanted = dict[str, AdapterVersion]


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


def reconcile_cluster(cluster: Cluster) -> None:
    """Load what is wanted, then route to it, then unload the rest."""
    wanted = wanted_versions(cluster)
    surplus = []
    for replica in cluster.replicas.all():
        with EngineClient(replica.url) as engine:
            if observe(replica, engine):
                load_missing(replica, engine, wanted)
                surplus.append((replica, set(replica.loaded) - set(wanted)))
    start_loaded_rollouts(cluster)
    publish()
    for replica, names in surplus:
        unload(replica, names)


def wanted_versions(cluster: Cluster) -> Wanted:
    """Served name -> version: what aliases and rollouts need, what a rollback may need, what a router asked for."""
    since = now() - settings.ROLLBACK_WINDOW
    versions = AdapterVersion.objects.select_related("adapter__project")
    replaced = AliasMove.objects.filter(alias__cluster=cluster).replaced_since(since).values_list("version", flat=True)
    # What traffic needs comes first: when the slots are full, the rest waits.
    in_order = (
        versions.filter(aliases__cluster=cluster),
        versions.filter(candidate_of__in=Rollout.objects.active().filter(alias__cluster=cluster)),
        versions.filter(pk__in=list(replaced)),
        versions.ready().trained_on(cluster.base_model).filter(served_name__in=asked_for()),
    )
    return {version.served_name: version for group in in_order for version in group}


def asked_for() -> set[str]:
    """Cold versions that routers wait for; none while Valkey is away."""
    try:
        return wanted_now()
    except redis.RedisError as error:
        log.warning("Valkey does not answer (%s): cold versions are not loaded.", error)
        return set()


def observe(replica: Replica, engine: EngineClient) -> bool:
    """Ask the replica what it holds. False when it does not answer or serves another base model."""
    try:
        models, version = engine.models(), engine.version()
    except EngineError as error:
        replica.missed(str(error))
        return False
    base = replica.cluster.base_model.slug
    if base not in {model.name for model in models if model.parent is None}:
        replica.missed(f"It serves {', '.join(model.name for model in models) or 'nothing'}, not {base}.")
        return False
    replica.saw({model.name: model.root for model in models if model.parent is not None}, version)
    return True


def load_missing(replica: Replica, engine: EngineClient, wanted: Wanted) -> None:
    """Load each wanted version that the replica lacks, or holds from another path."""
    for name, version in wanted.items():
        path = str(settings.SERVED_DIR / version.digest)
        if replica.loaded.get(name) == path or replica.refused.get(name):
            continue
        if len(replica.loaded) >= replica.cluster.max_loras and name not in replica.loaded:
            make_room(replica, engine, wanted)
        load(replica, engine, version)


def make_room(replica: Replica, engine: EngineClient, wanted: Wanted) -> None:
    """Slots are full: unload what nothing wants."""
    for name in set(replica.loaded) - set(wanted):
        take_out(replica, engine, name)


def load(replica: Replica, engine: EngineClient, version: AdapterVersion) -> None:
    """Load from a verified copy, then probe; a version that fails is refused here and never routed to."""
    name = version.served_name
    try:
        path = str(version.served_folder())
        if name in replica.loaded:
            # Held from another path: those are not the weights that the digest names.
            take_out(replica, engine, name)
        load_once(engine, name, path)
        probe(engine, name)
    except (EngineRejected, ArtifactError) as error:
        refuse(replica, engine, version, str(error))
    except EngineError as error:
        replica.missed(str(error))
    else:
        loaded(replica, version, path)


def load_once(engine: EngineClient, name: str, path: str) -> None:
    try:
        engine.load_adapter(name, path)
    except AdapterAlreadyLoaded:
        held = {model.name: model.root for model in engine.models()}
        if held.get(name) != path:
            raise


def probe(engine: EngineClient, name: str) -> None:
    """A long prompt through the new adapter: broken weights answer with numbers that are not finite."""
    completion = engine.complete(name, PROBE, max_tokens=4)
    if not completion.finite or completion.completion_tokens < 1:
        raise EngineRejected(f"The probe of {name} gave no finite answer.")


def loaded(replica: Replica, version: AdapterVersion, path: str) -> None:
    with transaction.atomic():
        replica.loaded = {**replica.loaded, version.served_name: path}
        replica.save(update_fields=["loaded"])
        note(Tag.VERSION_LOADED, replica, version)


def refuse(replica: Replica, engine: EngineClient, version: AdapterVersion, message: str) -> None:
    """Remember the refusal, so that the loop does not try for ever; unload what may have stayed."""
    take_out(replica, engine, version.served_name)
    with transaction.atomic():
        replica.refused = {**replica.refused, version.served_name: message}
        replica.save(update_fields=["refused"])
        note(Tag.LOAD_REFUSED, replica, version, reason=message)


def note(tag: Tag, replica: Replica, version: AdapterVersion, reason: str = "") -> None:
    after = {"version": version.served_name, "digest": version.digest}
    AuditEvent.record(tag, replica, by=RECONCILER, project=version.project, after=after, reason=reason)


def unload(replica: Replica, names: set[str]) -> None:
    """After the new table is out: nothing routes to these any more, and running answers end undisturbed."""
    if names:
        with EngineClient(replica.url) as engine:
            for name in names:
                take_out(replica, engine, name)


def take_out(replica: Replica, engine: EngineClient, name: str) -> None:
    """Unload one version; one that is not there is as good."""
    try:
        engine.unload_adapter(name)
    except AdapterNotLoaded:
        log.info("%s did not hold %s any more.", replica, name)
    except EngineError as error:
        log.warning("%s did not unload %s: %s", replica, name, error)
        return
    replica.loaded = {held: path for held, path in replica.loaded.items() if held != name}
    replica.save(update_fields=["loaded"])


def start_loaded_rollouts(cluster: Cluster) -> None:
    """A rollout starts when every healthy replica holds its candidate, and fails when all refuse it."""
    healthy = list(cluster.replicas.filter(is_healthy=True))
    for alias in cluster.aliases.all():
        for rollout in alias.rollouts.filter(status=RolloutStatus.LOADING).select_related("candidate"):
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
