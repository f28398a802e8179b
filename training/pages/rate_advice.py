"""Explanation of the learning rate that a rank analysis proposes: what its probes measured, and the rule."""

from __future__ import annotations

from typing import Any


def rate_advice(plan: dict[str, Any]) -> dict[str, Any] | None:
    """Return the proposed rate, the probes' rates with their losses, and the factor to the best of them.

    None without a rate. `is_at_edge` is True if the lowest loss was reached at the lowest or highest rate that was
    tried.
    """
    probes = sorted((each for each in plan["probes"] if each["loss"] is not None), key=lambda each: each["rate"])
    if not plan["learning_rate"] or not probes:
        return None
    best = min(probes, key=lambda each: each["loss"])
    return {
        "rate": plan["learning_rate"],
        "best": best["rate"],
        "factor": plan["learning_rate"] / best["rate"],
        "rows": [{**each, "is_best": each is best} for each in probes],
        "is_at_edge": len(probes) > 1 and best in (probes[0], probes[-1]),
    }
