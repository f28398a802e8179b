"""Tables with two projects: `eu` has the alias compliance on two versions of dora, `us` has billing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any

from serving_client import AliasRoute, CacheRule, RateLimit, RolloutRoute, RoutingTable, TokenRoute, VersionRoute

STABLE = "dora.v1-0123456789ab"
CANDIDATE = "dora.v2-ba9876543210"
FOREIGN = "billing.v1-aaaaaaaaaaaa"
SALT = "salt"
# The secret holds an underscore: only the first two divide a token.
SECRET = "s3cret_with-marks"  # noqa: S105 - of the tests


def token(name: str, secret: str = SECRET) -> dict[str, str]:
    return {"Authorization": f"Bearer ah_{name}_{secret}"}


INFER, OPERATE, FOREIGNER = token("infer0000000"), token("operate00000"), token("foreign00000")


def token_route(project: str, *scopes: str, expires_at: float | None = None) -> TokenRoute:
    return TokenRoute(hashlib.sha256(SECRET.encode()).hexdigest(), project, scopes, expires_at)


def tokens() -> dict[str, TokenRoute]:
    return {
        "infer0000000": token_route("eu", "infer"),
        "operate00000": token_route("eu", "infer", "operate"),
        "foreign00000": token_route("us", "infer"),
        "read00000000": token_route("eu", "read"),
        "expired00000": token_route("eu", "infer", expires_at=time.time() - 1),
    }


def make_table(
    *replicas: str,
    generation: int = 1,
    weight: float | None = None,
    published_at: float | None = None,
    stable: str = STABLE,
    cache: CacheRule | None = None,
    limits: Mapping[str, RateLimit] | None = None,
    tokens_per_min: Mapping[str, float] | None = None,
    **rollout: Any,
) -> RoutingTable:
    """A table in which all versions are held by `replicas`; with a weight compliance rolls out its candidate."""
    split = None if weight is None else RolloutRoute("rollout-1", CANDIDATE, weight, SALT, **rollout)
    return RoutingTable(
        generation=generation,
        published_at=time.time() if published_at is None else published_at,
        aliases={
            "eu/compliance": AliasRoute("eu", stable, split, cache, default_of="dora"),
            "us/billing": AliasRoute("us", FOREIGN, None, cache, default_of="invoices"),
            "eu/unserved": AliasRoute("eu", "gone.v1-cccccccccccc"),
        },
        adapters={"eu/dora": STABLE, "us/invoices": FOREIGN},
        versions={
            STABLE: VersionRoute("eu", "tiny", "01" * 32, replicas),
            CANDIDATE: VersionRoute("eu", "tiny", "ba" * 32, replicas),
            FOREIGN: VersionRoute("us", "tiny", "aa" * 32, replicas),
        },
        tokens=tokens(),
        limits=limits or {},
        tokens_per_min=tokens_per_min or {},
    )
