"""Validation of an alias' policy.

`{"quorum": 0..10, "canary": percent, "cache": {"ttl_s": seconds, "max_bytes": bytes}}`; each key may be left out.
"""

from __future__ import annotations

from typing import Any

from adapterhub.core.errors import Invalid

MAX_QUORUM = 10
MAX_TTL_S = 7 * 86_400
MAX_CACHE_BYTES = 2**30


def check_policy(policy: dict[str, Any]) -> None:
    """Check a policy's keys and values. Raises Invalid, which names the key and its permitted values."""
    require(
        not set(policy) - {"quorum", "canary", "cache"}, "A policy may only have the keys quorum, canary and cache."
    )
    require(is_whole(policy.get("quorum", 0), 0, MAX_QUORUM), f"quorum must be a number from 0 to {MAX_QUORUM}.")
    if "canary" in policy:
        check_canary(policy)
    if "cache" in policy:
        check_cache(policy["cache"])


def check_canary(policy: dict[str, Any]) -> None:
    """Check that the canary share is a percentage, and that the policy has a quorum. Raises Invalid."""
    is_number = isinstance(policy["canary"], int | float) and not isinstance(policy["canary"], bool)
    require(is_number and 0 <= policy["canary"] <= 100, "canary is a percentage from 0 to 100.")
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


def is_whole(value: Any, least: int, most: int) -> bool:
    """Return True for an int, other than True and False, from `least` to `most`."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def require(condition: bool, message: str) -> None:
    """Raise Invalid naming the policy unless the condition holds."""
    if not condition:
        raise Invalid(message, field="policy", code="bad_policy")
