"""The routing table that the control plane publishes and every router reads, and the arm of a unit. Pure.

The arm is a function of salt, unit and weight alone, so that routers and statistics agree without talking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import orjson

Arm = Literal["candidate", "control", "stable"]


@dataclass(frozen=True)
class Checks:
    """Rules that an answer's text is checked against.

    `refusal` and `format` are regular expressions: one that a refusal contains, one that a right answer contains;
    `schema` is a JSON Schema that a right answer's JSON obeys.
    """

    refusal: str | None = None
    format: str | None = None
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Sampling:
    """Sampling for the judge.

    `percent` of both arms' answers is sampled; `key` is the hub's public key (X25519, hex), for which their texts are
    encrypted.
    """

    percent: float
    key: str


@dataclass(frozen=True)
class RolloutRoute:
    """A running A/B split; `weight` is the candidate's share in percent.

    `pinned` names by sha256 the units that always get one side and are excluded from the statistics. `holdout` is the
    percentage of units that no rollout of the alias touches. `shadow` is the percentage of the stable version's answers
    for which the candidate is asked too; no caller sees its answer.
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


@dataclass(frozen=True)
class CacheRule:
    """Limits of the cache of an alias' answers: seconds until they expire, and bytes in all."""

    ttl_s: int
    max_bytes: int


@dataclass(frozen=True)
class RateLimit:
    """A project's rate in requests a second, and the burst that it may send at once after a pause."""

    per_s: float
    burst: float


@dataclass(frozen=True)
class AliasRoute:
    """The served name of an alias' stable version and, while a rollout runs, its split."""

    project: str
    stable: str
    rollout: RolloutRoute | None = None
    cache: CacheRule | None = None


@dataclass(frozen=True)
class VersionRoute:
    """A servable version and the replicas that hold it; without replicas it is cold.

    `spare` replicas hold it too, but have been unstable lately: they are asked when none of `replicas` answers.
    """

    project: str
    base: str
    digest: str
    replicas: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()


@dataclass(frozen=True)
class TokenRoute:
    """A bearer token: sha256 hex of its secret; `expires_at` in epoch seconds."""

    hash: str
    project: str
    scopes: tuple[str, ...]
    expires_at: float | None = None


@dataclass(frozen=True)
class RoutingTable:
    """A consistent snapshot of all routes; a higher generation replaces a lower one."""

    generation: int
    published_at: float
    aliases: Mapping[str, AliasRoute] = field(default_factory=dict)
    adapters: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, VersionRoute] = field(default_factory=dict)
    tokens: Mapping[str, TokenRoute] = field(default_factory=dict)
    limits: Mapping[str, RateLimit] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the table as JSON, for publication and snapshots."""
        return orjson.dumps(self).decode()

    def changed_by(self, change: RoutingTable) -> RoutingTable:
        """Return this table with a change of some aliases: their routes and the versions behind them."""
        aliases = {**self.aliases, **change.aliases}
        return replace(
            self,
            generation=change.generation,
            published_at=change.published_at,
            aliases=aliases,
            adapters=adapters_of(aliases),
            versions={**self.versions, **change.versions},
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> RoutingTable:
        """Parse a table; fields added by a newer control plane are ignored. Raises ValueError."""
        try:
            return _table(orjson.loads(text))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The text is no routing table: {error!r}.") from error


def adapters_of(aliases: Mapping[str, AliasRoute]) -> dict[str, str]:
    """Map each adapter to the version that an alias serves; of several aliases the last by name wins."""
    return {adapter_of(route.stable): route.stable for _, route in sorted(aliases.items())}


def adapter_of(served_name: str) -> str:
    """Return the adapter's name in a served name: `dora` of `dora.v3-0123456789ab`."""
    return served_name.rpartition(".v")[0]


def _table(raw: dict[str, Any]) -> RoutingTable:
    return RoutingTable(
        generation=int(raw["generation"]),
        published_at=float(raw["published_at"]),
        aliases={name: _alias(route) for name, route in raw["aliases"].items()},
        adapters=dict(raw["adapters"]),
        versions={name: _version(route) for name, route in raw["versions"].items()},
        tokens={name: _token(route) for name, route in raw["tokens"].items()},
        limits={name: _limit(limit) for name, limit in raw.get("limits", {}).items()},
    )


def _limit(raw: dict[str, Any]) -> RateLimit:
    """Parse a rate limit. Raises ValueError for one that would refuse every request."""
    per_s, burst = float(raw["per_s"]), float(raw["burst"])
    if per_s <= 0 or burst < 1:
        raise ValueError("A rate limit needs per_s above 0 and burst from 1 on.")
    return RateLimit(per_s, burst)


def _alias(raw: dict[str, Any]) -> AliasRoute:
    rollout, cache = raw["rollout"], raw.get("cache")
    return AliasRoute(
        raw["project"], raw["stable"], _rollout(rollout) if rollout else None, _cache(cache) if cache else None
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
    )


def _version(raw: dict[str, Any]) -> VersionRoute:
    return VersionRoute(raw["project"], raw["base"], raw["digest"], tuple(raw["replicas"]), tuple(raw.get("spare", ())))


def _token(raw: dict[str, Any]) -> TokenRoute:
    return TokenRoute(raw["hash"], raw["project"], tuple(raw["scopes"]), raw["expires_at"])


def bucket_of(salt: str, unit: str) -> float:
    """Map a unit to a number in [0, 1): the first 8 bytes of sha256("salt|unit") over 2**64."""
    return int.from_bytes(hashlib.sha256(f"{salt}|{unit}".encode()).digest()[:8], "big") / 2**64


def arm_of(salt: str, unit: str, weight: float) -> Arm:
    """Return the arm of a unit at a weight in percent.

    The candidate owns [0, p) and the equal-sized control [max(p, 1-p), 1): both only grow while p grows to one half,
    so that nobody changes arms during the ramp. The rest is stable and out of the statistics.
    """
    bucket, share = bucket_of(salt, unit), weight / 100
    if bucket < share:
        return "candidate"
    return "control" if bucket >= max(share, 1 - share) else "stable"
