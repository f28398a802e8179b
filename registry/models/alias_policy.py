"""Validation of an alias' policy.

`{"quorum": 0..10, "canary": percent, "cache": {"ttl_s": seconds, "max_bytes": bytes}, "evaluations": [{"task": name,
"metric": name, "at_least" or "at_most": number}], "replicas": "all" | "auto" | n}`; each key may be left out.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from adapterhub.core.errors import Invalid

MAX_QUORUM = 10
MAX_TTL_S = 7 * 86_400
MAX_CACHE_BYTES = 2**30
MAX_EVALUATIONS = 20
ALL, AUTO, MAX_REPLICAS = "all", "auto", 10_000


def check_policy(policy: dict[str, Any]) -> None:
    """Check a policy's keys and values. Raises Invalid, which names the key and its permitted values."""
    require(
        not set(policy) - {"quorum", "canary", "cache", "evaluations", "replicas"},
        "A policy may only have the keys quorum, canary, cache, evaluations and replicas.",
    )
    require(is_whole(policy.get("quorum", 0), 0, MAX_QUORUM), f"quorum must be a number from 0 to {MAX_QUORUM}.")
    if "canary" in policy:
        check_canary(policy)
    if "cache" in policy:
        check_cache(policy["cache"])
    check_evaluations(policy.get("evaluations", []))
    if "replicas" in policy:
        wanted = policy["replicas"]
        is_named = isinstance(wanted, str) and wanted in (ALL, AUTO)
        require(
            is_named or is_whole(wanted, 1, MAX_REPLICAS),
            f'replicas must be "all", "auto" or a number from 1 to {MAX_REPLICAS:,}.',
        )


def copies(policy: dict[str, Any]) -> int | None:
    """Return the number of replicas that should load what the alias serves, from its policy; None for all.

    The policy "auto" is one replica, and two for a protected alias, which must not wait for a load when one is lost.
    """
    wanted = policy.get("replicas", ALL)
    if wanted == AUTO:
        return 2 if policy.get("quorum") else 1
    return None if wanted == ALL else int(wanted)


def check_canary(policy: dict[str, Any]) -> None:
    """Check that the canary share is a percentage, and that the policy has a quorum. Raises Invalid."""
    require(is_number(policy["canary"]) and 0 <= policy["canary"] <= 100, "canary is a percentage from 0 to 100.")
    require(bool(policy.get("quorum")), "canary belongs to a protected alias: set quorum to 1 or more.")


def check_cache(cache: Any) -> None:
    """Check that the cache is {ttl_s, max_bytes}, both whole and within their limits. Raises Invalid."""
    is_pair = isinstance(cache, dict) and set(cache) == {"ttl_s", "max_bytes"}
    require(is_pair, "cache is {ttl_s: seconds, max_bytes: bytes}; leave it out to cache nothing.")
    require(is_whole(cache["ttl_s"], 1, MAX_TTL_S), f"cache.ttl_s must be a number from 1 to {MAX_TTL_S}.")
    require(
        is_whole(cache["max_bytes"], 1, MAX_CACHE_BYTES),
        f"cache.max_bytes must be a number from 1 to {MAX_CACHE_BYTES}.",
    )


def check_evaluations(wanted: Any) -> None:
    """Check that each entry is {task, metric} with either `at_least` or `at_most`, a number. Raises Invalid."""
    require(
        isinstance(wanted, list) and len(wanted) <= MAX_EVALUATIONS,
        f"evaluations is a list of at most {MAX_EVALUATIONS}.",
    )
    for one in wanted:
        is_named = isinstance(one, dict) and all(is_name(one.get(name)) for name in ("task", "metric"))
        bounds = set(one) - {"task", "metric"} if is_named else set()
        require(
            bounds in ({"at_least"}, {"at_most"}) and all(is_number(one[bound]) for bound in bounds),
            "evaluations has {task, metric, at_least} or {task, metric, at_most}: two names and a number.",
        )


def is_name(value: Any) -> bool:
    """Return True for a text of 1 to 100 characters."""
    return isinstance(value, str) and 1 <= len(value) <= 100


def is_number(value: Any) -> bool:
    """Return True for a finite number, other than True and False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def is_whole(value: Any, least: int, most: int) -> bool:
    """Return True for an int, other than True and False, from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def require(condition: bool, message: str) -> None:
    """Raise Invalid with the message, which blames the field `policy`, unless the condition holds."""
    if not condition:
        raise Invalid(message, field="policy", code="bad_policy")
