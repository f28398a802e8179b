"""The routing table, built from the database and published to the routers as a whole or for changed aliases."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import QuerySet
from redis.client import Pipeline

from adapterhub.accounts.models import ApiToken, NamedVersions, Project
from adapterhub.accounts.project_limits import limits_now
from adapterhub.accounts.tokens import LIMITS
from adapterhub.encryption import private_key
from registry.models import AdapterVersion, Alias, Cluster, ClusterGrant, Replica, Rollout
from registry.models.alias import AliasQuerySet
from registry.models.approved_versions import approved_names
from registry.serving.valkey import valkey_for_publication
from serving_client.engine_keys import kept_secret, sealed
from serving_client.protocol import (
    LEAST_LOADED,
    NEWEST_TABLE,
    PREFIX_AFFINITY,
    ROUTING_CHANGES,
    ROUTING_TABLE,
    SAMPLES,
    AliasRoute,
    CacheRule,
    Checks,
    RateLimit,
    RolloutRoute,
    RoutingTable,
    Sampling,
    Share,
    TokenRoute,
    VersionRoute,
    adapters_of,
    approved_of,
    key_of,
)

MOST_CHANGES = 200
Granted = dict[tuple[int, ...], set[int]]


def publish() -> RoutingTable:
    """Build the whole table, publish it and return it.

    Raises RedisError if Valkey is down; the routers then keep their last table.
    """
    table = routing_table()
    with valkey_for_publication() as client:
        client.transaction(partial(put, table, table.to_json()), NEWEST_TABLE)
    return table


def put(table: RoutingTable, text: str, pipe: Pipeline) -> None:
    """Replace the published table unless it is newer than this one; changes newer than this table stay published.

    `pipe` watches the key of the newest table, so the caller repeats the call if another process publishes meanwhile.
    `text` is the table as JSON.
    """
    generation, published_at = json.loads(pipe.get(NEWEST_TABLE) or "[0, 0]")
    if generation > table.generation and published_at > table.published_at:
        return
    pipe.multi()
    pipe.set(ROUTING_TABLE, text)
    pipe.set(NEWEST_TABLE, json.dumps([table.generation, table.published_at]))
    # A restored database counts from a lower number again: every published change is then obsolete.
    most = table.generation if generation <= table.generation else "+inf"
    pipe.zremrangebyscore(ROUTING_CHANGES, "-inf", most)
    pipe.publish(ROUTING_TABLE, str(table.generation))


def publish_changes(aliases: Collection[int]) -> None:
    """Publish only the routes of these aliases (keys), which costs less than the whole table.

    When more than MOST_CHANGES such changes are published, the whole table is published. Raises RedisError if Valkey is
    down.
    """
    change = routes_of(aliases)
    with valkey_for_publication() as client, client.pipeline() as pipe:
        pipe.zadd(ROUTING_CHANGES, {change.to_json(): change.generation})
        pipe.zcard(ROUTING_CHANGES)
        pipe.publish(ROUTING_TABLE, str(change.generation))
        _, waiting, _ = pipe.execute()
    if waiting > MOST_CHANGES:
        publish()


def routing_table() -> RoutingTable:
    """Build the whole table, with a new generation, from the database."""
    generation, published_at = next_generation()
    aliases = alias_routes(Alias.objects.all())
    limits = project_limits()
    per_s = {slug: rate for slug, each in limits.items() if (rate := each.requests_per_s)}
    return RoutingTable(
        generation=generation,
        published_at=published_at,
        aliases=aliases,
        adapters=adapters_of(aliases),
        versions=version_routes(),
        tokens={token.pk: token_route(token) for token in usable_tokens()},
        limits={slug: RateLimit(rate, max(1, 2 * rate)) for slug, rate in per_s.items()},
        approved=approved_of(aliases),
        engine_keys=engine_keys(),
        shares={each.share_key: Share(each.requests_per_s, each.tokens_per_min) for each in limited_grants()},
        tokens_per_min={slug: most for slug, each in limits.items() if (most := each.tokens_per_min)},
    )


def routes_of(aliases: Collection[int]) -> RoutingTable:
    """Build a table of a new generation with only these aliases (keys): their routes and the versions in them."""
    generation, published_at = next_generation()
    routes = alias_routes(Alias.objects.filter(pk__in=aliases))
    names = {name for route in routes.values() for name in (route.stable, route.rollout and route.rollout.candidate)}
    return RoutingTable(generation, published_at, routes, versions=version_routes(served_name__in=names - {None}))


def alias_routes(aliases: AliasQuerySet) -> dict[str, AliasRoute]:
    """Return the routes of the aliases by `PROJECT/NAME`; a rollout whose share is not signed is left out."""
    serving = (
        Rollout.objects.serving()
        .filter(alias__in=aliases)
        .select_related("alias", "candidate")
        .prefetch_related("approvals")
    )
    running = {rollout.alias_id: rollout for rollout in serving if not rollout.waits_for_signature}
    approved = approved_names(aliases.filter(project__named_versions=NamedVersions.APPROVED))
    columns = ("name", "policy", "created_at", "project__slug", "version__served_name", "default_of__slug")
    rows = aliases.select_related("project", "version", "default_of").only(*columns)
    return {
        key_of(alias.project.slug, alias.name): alias_route(alias, running.get(alias.pk), approved.get(alias.pk))
        for alias in rows
    }


def project_limits() -> dict[str, Share]:
    """Return the requests a second and tokens a minute that routers accept of each project, by slug; None is no limit.

    They are the lower of the project's own limits and the installation's.
    """
    return {project.slug: Share(**limits_now(project)) for project in Project.objects.only("slug", *LIMITS)}


def next_generation() -> tuple[int, float]:
    """Return a new generation number and the database's time in seconds since the epoch.

    Call it before reading rows, so that a table of a higher generation contains all that a lower one does.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT nextval('routing_table_generation'), extract(epoch FROM clock_timestamp())")
        generation, moment = cursor.fetchone()
    return int(generation), float(moment)


def alias_route(alias: Alias, rollout: Rollout | None, approved: set[str] | None) -> AliasRoute:
    """Return the route of an alias: stable version, rollout, cache rule, and the adapter whose bare name stands for it.

    `approved` are the served names that callers may request on a protected alias; None permits all.
    """
    return AliasRoute(
        project=alias.project.slug,
        stable=alias.version.served_name,
        rollout=rollout_route(rollout) if rollout else None,
        cache=CacheRule(**cache) if (cache := alias.policy.get("cache")) else None,
        default_of=alias.default_of.slug if alias.default_of else None,
        approved=None if approved is None else tuple(sorted(approved)),
        created=int(alias.created_at.timestamp()),
    )


def rollout_route(rollout: Rollout) -> RolloutRoute:
    """Return the part of a rollout that routers need; the settings of the judge are left out."""
    return RolloutRoute(
        id=str(rollout.pk),
        candidate=rollout.candidate.served_name,
        weight=rollout.weight,
        salt=rollout.salt,
        shadow=rollout.shadow,
        checks=Checks(**{name: check for name, check in rollout.checks.items() if name != "judge"}),
        sampling=sampling(rollout),
        is_signed=rollout.is_signed,
        **rollout.targeting,
    )


def sampling(rollout: Rollout) -> Sampling | None:
    """Return the percent of answers to sample and the public key that encrypts them for the judge.

    None if the rollout has no judge or the installation has none.
    """
    judge = rollout.checks.get("judge")
    key = private_key(SAMPLES).public_key().public_bytes_raw()
    return Sampling(judge["sample"], key.hex()) if judge and settings.JUDGE_URL else None


def version_routes(**only: Any) -> dict[str, VersionRoute]:
    """Return the routes of the ready versions that a cluster may serve, by served name.

    `only` are further conditions on the versions, as Django's `filter` takes them.
    """
    clusters = list(Cluster.objects.values_list("pk", "max_lora_rank", "routing"))
    refusals = Refusals.read({cluster: rank for cluster, rank, _ in clusters})
    affine = {cluster for cluster, _, routing in clusters if routing == PREFIX_AFFINITY}
    replicas, (granted, on_variants) = holders(), granted_clusters()
    live = live_clusters() if on_variants else {}
    limited = {(each.project_id, each.cluster_id): each.share_key for each in limited_grants()}
    bases = {base for _, base in [*granted, *on_variants]}
    ready = AdapterVersion.objects.ready().filter(adapter__base_model__in=bases, **only)
    columns = ("served_name", "digest", "max_rank", "created_at")
    names = ("adapter__project__slug", "adapter__base_model__slug")
    size = ("adapter__base_model__longest_token", "adapter__base_model__config__max_position_embeddings")
    rows = ready.values_list(*columns, *names, *size, "adapter__project", "adapter__base_model")
    return {
        name: VersionRoute(
            project,
            base,
            digest,
            *addresses(replicas.get(name, ()), answering),
            most_characters(longest, positions),
            refusals.of(name, rank, answering),
            int(created.timestamp()),
            share_among([limited.get((pair[0], cluster)) for cluster in sorted(answering)]),
            PREFIX_AFFINITY if answering <= affine else LEAST_LOADED,
        )
        for name, digest, rank, created, project, base, longest, positions, *pair in rows
        if (key := tuple(pair)) in granted or key in on_variants
        if (answering := of_version(granted.get(key, set()), on_variants.get(key, set()), live.get(name, set())))
    }


def of_version(own: set[int], variants: set[int], live: set[int]) -> set[int]:
    """Return the clusters that answer for a version, either `own` or `variants`.

    `own` are those of its base model, `variants` those of the base model's declared variants. `live` are the clusters
    whose aliases or active rollouts serve the version. Variants answer only where an alias on one of them serves the
    version and none on its own base model does, or where there is no other cluster: nobody gets fewer bits because
    somebody else chose them.
    """
    return variants if variants and not own & live and (variants & live or not own) else own


def live_clusters() -> dict[str, set[int]]:
    """Map served names to the clusters whose aliases or active rollouts serve them."""
    live: dict[str, set[int]] = {}
    rollouts = Rollout.objects.active().values_list("candidate__served_name", "alias__cluster")
    for name, cluster in [*Alias.objects.values_list("version__served_name", "cluster"), *rollouts]:
        live.setdefault(name, set()).add(cluster)
    return live


def limited_grants() -> list[ClusterGrant]:
    """Return the accepted grants that limit the project's requests or tokens on the cluster."""
    accepted = ClusterGrant.objects.standing().exclude(project=None)
    return list(accepted.exclude(requests_per_s=None, tokens_per_min=None))


def share_among(keys: list[str | None]) -> str | None:
    """Return the key of the share against which a version's requests count: the first of `keys`.

    `keys` has the share's key of each of its clusters; None is a cluster that is the project's own, or is granted
    without a limit. None is returned if there is such a cluster, or no cluster.
    """
    return keys[0] if keys and all(keys) else None


@dataclass(frozen=True)
class Refusals:
    """The reasons why clusters will not hold a version: the highest rank of each, and what all its replicas refused."""

    limits: Mapping[int, int]
    refused: Mapping[int, set[str]]

    @classmethod
    def read(cls, limits: Mapping[int, int]) -> Refusals:
        """Read from the database what all usable replicas of each cluster refused, and return it with `limits`.

        `limits` maps the clusters' keys to their highest ranks.
        """
        refused: dict[int, set[str]] = {}
        for cluster, names in Replica.objects.usable().values_list("cluster", "refused"):
            refused[cluster] = refused.get(cluster, set(names)) & set(names)
        return cls(limits, refused)

    def of(self, name: str, rank: int, clusters: set[int]) -> str | None:
        """Return why none of the clusters will hold the version, as a sentence for callers of the router.

        None if one may.
        """
        able = [cluster for cluster in clusters if self.limits[cluster] >= rank]
        if not able:
            highest = max(self.limits[cluster] for cluster in clusters)
            return (
                f"{name} has rank {rank}; its clusters serve at most {highest}. Compress the version to that rank, or "
                f"have an operator raise a cluster's max_lora_rank."
            )
        if all(name in self.refused.get(cluster, ()) for cluster in able):
            return f"Every replica refused {name}: the alarms name the reason."
        return None


def most_characters(longest_token: int, positions: Any) -> int | None:
    """Return the most characters that a text within a base model's context can have; None if that is not known.

    `longest_token` is the number of characters of its longest token, 0 if not known; `positions` is its context in
    tokens.
    """
    return longest_token * positions if longest_token and isinstance(positions, int) else None


def granted_clusters() -> tuple[Granted, Granted]:
    """Map (project, base model) to the clusters that may serve the project's versions of that base model.

    They are the project's own clusters and those of accepted grants that were not withdrawn: in the first map those of
    the base model, in the second those of its declared variants. All are database ids.
    """
    of_base: Granted = {}
    of_variants: Granted = {}
    own = Cluster.objects.values_list("project", "base_model", "base_model__variant_of", "pk")
    accepted = ClusterGrant.objects.standing().exclude(project=None)
    bases = ("cluster__base_model", "cluster__base_model__variant_of")
    for project, base, variant_of, cluster in [*own, *accepted.values_list("project", *bases, "cluster")]:
        of_base.setdefault((project, base), set()).add(cluster)
        if variant_of:
            of_variants.setdefault((project, variant_of), set()).add(cluster)
    return of_base, of_variants


def holders() -> dict[str, list[Replica]]:
    """Map each served name to the usable replicas that hold it."""
    replicas_of: dict[str, list[Replica]] = {}
    for replica in Replica.objects.usable().only("cluster", "url", "loaded", "rests_until"):
        for name in replica.loaded:
            replicas_of.setdefault(name, []).append(replica)
    return replicas_of


def addresses(replicas: Iterable[Replica], clusters: set[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the addresses of the replicas in these clusters as (in use, spare).

    A replica that rests after it was unreachable several times is spare, unless all of them rest: then all are in use.
    """
    usable = [replica for replica in replicas if replica.cluster_id in clusters]
    steady = tuple(replica.url for replica in usable if not replica.is_resting)
    resting = tuple(replica.url for replica in usable if replica.is_resting)
    return (steady, resting) if steady else (resting, ())


def engine_keys() -> dict[str, str]:
    """Map the URLs of replicas whose engines require an API key to that key, encrypted for the routers."""
    replicas = Replica.objects.usable().exclude(cluster__sealed_key=b"").select_related("cluster")
    return {each.url: sealed(each.cluster.engine_key, kept_secret(settings.ROUTER_SECRET_FILE)) for each in replicas}


def usable_tokens() -> QuerySet[ApiToken]:
    """Return the usable tokens, including those without scope infer, which a router must not take for unknown ones."""
    owned = ApiToken.objects.usable().select_related("project", "account", "created_by")
    return owned.prefetch_related("account__memberships", "created_by__memberships")


def token_route(token: ApiToken) -> TokenRoute:
    """Return what routers need of a token: the secret's hash, project, present scopes, expiry, and its limits.

    The expiry is in epoch seconds, None for a token that does not expire; the limits are None for a token without any.
    """
    expires = token.expires_at.timestamp() if token.expires_at else None
    limits = Share(token.requests_per_s, token.tokens_per_min) if token.is_limited else None
    scopes = tuple(sorted(token.scopes_now()))
    return TokenRoute(token.secret_hash, token.project.slug, scopes, expires, token.pk, limits)
