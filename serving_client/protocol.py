"""Messages between the control plane and the routers, and the Valkey keys that hold them. Pure.

The control plane publishes the routing table. Routers ask for cold versions; their reports are in `reports`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

# The whole table; also the channel that announces a new generation of it.
ROUTING_TABLE = "ah:routing-table"
# Changes of single aliases since, sorted by generation.
ROUTING_CHANGES = "ah:routing-changes"
# Generation and time of the whole table that was published last; only the control plane uses it.
NEWEST_TABLE = "ah:routing-newest"
# A stream of requests to load a cold version; `WANTED_VERSION` is the field with its served name.
WANTS, WANTED_VERSION = "ah:wants", "version"
# Served name -> when the control loop last saw it loaded; requests from before that time are answered.
ANSWERED = "ah:answered"
# A stream of outcomes; `REPORTS` is the field with a JSON list of them.
OUTCOMES, REPORTS = "ah:outcomes", "o"
# A list of the keys of waiting samples, and the lock of the worker that judges them.
SAMPLES, JUDGING = "ah:samples", "ah:judging"
# Prefixes of keys: cached answers, the rate of a project at the routers, the rate of a caller at the REST API.
CACHE, PROJECT_RATE, CALLER_RATE = "ah:cache", "ah:rate", "ah:api"
# Of a project on a granted cluster: its requests, and its tokens.
SHARE_RATE, SHARE_TOKENS = "ah:share-rate", "ah:share-tokens"
# The tokens of text that a project took.
PROJECT_TOKENS = "ah:project-tokens"
# Of an API token: its requests, and the tokens of text that they took.
TOKEN_RATE, TOKEN_TOKENS = "ah:token-rate", "ah:token-tokens"
# A hash of the control plane: task name -> epoch seconds of its last success.
TASK_SUCCESSES = "ah:task-successes"
# There while a process `manage.py discover` runs, which does then what a task of beat does otherwise.
DISCOVERING = "ah:discovery"


@dataclass(frozen=True)
class Checks:
    """Rules that an answer's text is checked against.

    `refusal` and `format` are regular expressions: one that a refusal contains, one that a right answer contains;
    `schema` is a JSON Schema that the JSON of a correct answer follows.
    """

    refusal: str | None = None
    format: str | None = None
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sampling:
    """The `percent` of both arms' answers to sample for the judge, and the hub's public `key` (X25519, hex).

    Their texts are encrypted for that key.
    """

    percent: float
    key: str


@dataclass(frozen=True)
class RolloutRoute:
    """A running A/B split; `weight` is the candidate's share in percent.

    `pinned` names by sha256 the units that always get one side and are excluded from the statistics. `holdout` is the
    percentage of units that no rollout of the alias touches. `shadow` is the percentage of the stable version's answers
    for which the candidate is asked too; no caller sees its answer. An unsigned rollout of a protected alias has only
    its canary share: no caller may choose its candidate.
    """

    id: str
    candidate: str
    weight: float
    salt: str
    pinned: Mapping[str, Literal["candidate", "stable"]] = field(default_factory=dict)
    holdout: float = 0.0
    shadow: float = 0.0
    checks: Checks = Checks()
    sampling: Sampling | None = None
    is_signed: bool = True


@dataclass(frozen=True)
class CacheRule:
    """Limits of the cache of an alias' answers: seconds until they expire, and bytes in all."""

    ttl_s: int
    max_bytes: int


@dataclass(frozen=True)
class RateLimit:
    """The limit of a token bucket, whose units are requests or tokens of text.

    `per_s` units are added each second; `burst` is the most that it holds, to be spent at once after a pause.
    """

    per_s: float
    burst: float


@dataclass(frozen=True)
class Share:
    """The limits of a project on a cluster that was granted to it, or of an API token.

    Requests a second and tokens a minute; None = no limit.
    """

    requests_per_s: float | None = None
    tokens_per_min: float | None = None


@dataclass(frozen=True)
class AliasRoute:
    """The served name of an alias' stable version and, while a rollout runs, its split.

    `created` is in epoch seconds, 0 from an older control plane. `default_of` is the adapter whose bare name stands for
    this alias. `approved`, if not None, closes the stable version's adapter: of its versions callers may name only
    those that some alias of the adapter lists.
    """

    project: str
    stable: str
    rollout: RolloutRoute | None = None
    cache: CacheRule | None = None
    default_of: str | None = None
    approved: tuple[str, ...] | None = None
    created: int = 0


# How the replicas of a version are chosen: the one with the fewest requests in flight, or the one whose prefix cache
# has probably seen the beginning of the prompt.
LEAST_LOADED, PREFIX_AFFINITY = "least_loaded", "prefix_affinity"


@dataclass(frozen=True)
class VersionRoute:
    """A servable version and the replicas that hold it; without replicas it is cold.

    `base` is the slug of its base model, `digest` the sha256 of the version's files; replicas are URLs. `spare`
    replicas hold it too, but have been unstable lately: they are asked when none of `replicas` answers. A text of more
    than `most_characters` cannot fit into the context; None if that is not known. `refusal` says why no replica will
    hold it, and what to do; None if one may. `created` is in epoch seconds, 0 from an older control plane. `share` is
    the key of the project's limits on the cluster that serves it, if there are any. `routing` is how one of the
    replicas is chosen: LEAST_LOADED or PREFIX_AFFINITY; a router treats any other value as LEAST_LOADED.
    """

    project: str
    base: str
    digest: str
    replicas: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    most_characters: int | None = None
    refusal: str | None = None
    created: int = 0
    share: str | None = None
    routing: str = LEAST_LOADED


@dataclass(frozen=True)
class TokenRoute:
    """A bearer token of a project: `hash` is the sha256 of its secret in hexadecimal, `project` a slug.

    `expires_at` is in epoch seconds, None for a token that does not expire. `limits` are its own, counted under its
    `id` and beside those of its project; None without any.
    """

    hash: str
    project: str
    scopes: tuple[str, ...]
    expires_at: float | None = None
    id: str = ""
    limits: Share | None = None


@dataclass(frozen=True)
class RoutingTable:
    """A consistent snapshot of all routes; a higher generation replaces a lower one.

    `published_at` is in epoch seconds. `versions` is keyed by served name, `tokens` by the id in the token's text.
    Names of aliases and adapters are unique in a project only: `aliases` is keyed by `<project>/<alias>`. `adapters`
    maps `<project>/<adapter>` to the version that the adapter's default alias serves. `approved` maps in the same way
    the adapters of which callers may name approved versions only to these versions. `engine_keys` maps replicas to the
    API keys of their engines, sealed for the routers. `shares` has the limits that versions' routes name. `limits` and
    `tokens_per_min` have those of projects, by slug: of requests, and of the tokens of questions and answers.
    """

    generation: int
    published_at: float
    aliases: Mapping[str, AliasRoute] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, VersionRoute] = field(default_factory=dict)
    tokens: Mapping[str, TokenRoute] = field(default_factory=dict)
    limits: Mapping[str, RateLimit] = field(default_factory=dict)
    approved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    engine_keys: Mapping[str, str] = field(default_factory=dict)
    shares: Mapping[str, Share] = field(default_factory=dict)
    tokens_per_min: Mapping[str, float] = field(default_factory=dict)

    def may_be_named(self, version: str) -> bool:
        """Return True if a caller may ask for this version by its own name.

        Raises KeyError for a version not in the table.
        """
        names = self.approved.get(key_of(self.versions[version].project, adapter_of(version)))
        return names is None or version in names

    def alias(self, project: str, name: str | None) -> AliasRoute | None:
        """Return the route of a project's alias; None for an unknown name, and for None or "" as the name."""
        return self.aliases.get(key_of(project, name)) if name else None

    def to_json(self) -> str:
        """Return the table as JSON, for publication and snapshots."""
        return orjson.dumps(self).decode()

    def changed_by(self, change: RoutingTable) -> RoutingTable:
        """Return this table with the aliases and versions of `change` added or replaced.

        Generation and time are those of `change`.
        """
        aliases = {**self.aliases, **change.aliases}
        return replace(
            self,
            generation=change.generation,
            published_at=change.published_at,
            aliases=aliases,
            adapters=adapters_of(aliases),
            approved=approved_of(aliases),
            versions={**self.versions, **change.versions},
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> RoutingTable:
        """Parse a table; fields added by a newer control plane are ignored. Raises ValueError for any other text."""
        try:
            return _table(orjson.loads(text))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The text is not a routing table: {error!r}.") from error


def adapters_of(aliases: Mapping[str, AliasRoute]) -> dict[str, str]:
    """Map each adapter that has a default alias, as `<project>/<adapter>`, to the version that the alias serves."""
    return {key_of(route.project, route.default_of): route.stable for route in aliases.values() if route.default_of}


def approved_of(aliases: Mapping[str, AliasRoute]) -> dict[str, tuple[str, ...]]:
    """Map each adapter of which callers may name approved versions only, as `<project>/<adapter>`, to those versions.

    They are the approved versions that any of its aliases lists.
    """
    closed: dict[str, set[str]] = {}
    for route in aliases.values():
        if route.approved is not None:
            closed.setdefault(key_of(route.project, adapter_of(route.stable)), set()).update(route.approved)
    return {adapter: tuple(sorted(names)) for adapter, names in closed.items()}


def key_of(project: str, name: str) -> str:
    """Return the key of a project's alias or adapter in the table: `<project>/<name>`."""
    return f"{project}/{name}"


def adapter_of(served_name: str) -> str:
    """Return the adapter's slug in a served name: `dora` of `dora.v3-0123456789ab` or `eu.dora.v3-0123456789ab`.

    It is "" for a text without `.v`.
    """
    return served_name.rpartition(".v")[0].rpartition(".")[2]


def _table(raw: dict[str, Any]) -> RoutingTable:
    versions = {name: _version(route) for name, route in raw["versions"].items()}
    return RoutingTable(
        generation=int(raw["generation"]),
        published_at=float(raw["published_at"]),
        aliases={_key(name, route["project"]): _alias(route) for name, route in raw["aliases"].items()},
        adapters={_key(name, versions[to].project): to for name, to in raw["adapters"].items() if to in versions},
        versions=versions,
        tokens={name: _token(route) for name, route in raw["tokens"].items()},
        limits={name: _limit(limit) for name, limit in raw.get("limits", {}).items()},
        approved={adapter: tuple(names) for adapter, names in raw.get("approved", {}).items()},
        engine_keys={str(url): str(key) for url, key in raw.get("engine_keys", {}).items()},
        shares={key: _share(share) for key, share in raw.get("shares", {}).items()},
        tokens_per_min={name: _per_min(limit) for name, limit in raw.get("tokens_per_min", {}).items()},
    )


def _key(name: str, project: str) -> str:
    """Return the key of a name; an older control plane sends the name alone."""
    return name if "/" in name else key_of(project, name)


def _limit(raw: dict[str, Any]) -> RateLimit:
    """Parse a rate limit. Raises ValueError for one that would refuse every request."""
    per_s, burst = float(raw["per_s"]), float(raw["burst"])
    if per_s <= 0 or burst < 1:
        raise ValueError("A rate limit needs per_s above 0 and burst from 1 on.")
    return RateLimit(per_s, burst)


def _per_min(raw: Any) -> float:
    """Parse a limit of tokens a minute. Raises ValueError for one that would refuse every request."""
    if float(raw) <= 0:
        raise ValueError("A limit of tokens a minute is above 0.")
    return float(raw)


def _share(raw: dict[str, Any]) -> Share:
    """Parse a share. Raises ValueError for a limit that would refuse every request."""
    limits = {name: raw.get(name) for name in ("requests_per_s", "tokens_per_min")}
    if any(limit is not None and float(limit) <= 0 for limit in limits.values()):
        raise ValueError("A limit of a share is above 0.")
    return Share(**{name: None if limit is None else float(limit) for name, limit in limits.items()})


def _alias(raw: dict[str, Any]) -> AliasRoute:
    rollout, cache, approved = raw["rollout"], raw.get("cache"), raw.get("approved")
    return AliasRoute(
        raw["project"],
        raw["stable"],
        _rollout(rollout) if rollout else None,
        _cache(cache) if cache else None,
        raw.get("default_of"),
        None if approved is None else tuple(approved),
        int(raw.get("created", 0)),
    )


def _cache(raw: dict[str, Any]) -> CacheRule:
    return CacheRule(int(raw["ttl_s"]), int(raw["max_bytes"]))


def _rollout(raw: dict[str, Any]) -> RolloutRoute:
    checks, sampling = raw.get("checks") or {}, raw.get("sampling")
    return RolloutRoute(
        raw["id"],
        raw["candidate"],
        float(raw["weight"]),
        raw["salt"],
        dict(raw.get("pinned", {})),
        float(raw.get("holdout", 0)),
        float(raw.get("shadow", 0)),
        Checks(checks.get("refusal"), checks.get("format"), checks.get("schema")),
        Sampling(float(sampling["percent"]), sampling["key"]) if sampling else None,
        bool(raw.get("is_signed", True)),
    )


def _version(raw: dict[str, Any]) -> VersionRoute:
    most = raw.get("most_characters")
    return VersionRoute(
        raw["project"],
        raw["base"],
        raw["digest"],
        tuple(raw["replicas"]),
        tuple(raw.get("spare", ())),
        None if most is None else int(most),
        raw.get("refusal"),
        int(raw.get("created", 0)),
        raw.get("share"),
        str(raw.get("routing", LEAST_LOADED)),
    )


def _token(raw: dict[str, Any]) -> TokenRoute:
    limits = raw.get("limits")
    return TokenRoute(
        raw["hash"],
        raw["project"],
        tuple(raw["scopes"]),
        raw["expires_at"],
        raw.get("id", ""),
        _share(limits) if limits else None,
    )
