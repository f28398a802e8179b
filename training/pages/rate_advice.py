"""The learning rates that a rank analysis tried in its probe, with their losses, for the page of the plan."""

from __future__ import annotations

from typing import Any

from training.tars.probed_rates import lowest


def rate_advice(plan: dict[str, Any]) -> dict[str, Any] | None:
    """Return the rate with the lowest loss and the losses of all that the probe tried; None without a finite loss.

    `is_at_edge` is True if the lowest loss was reached at the lowest or highest rate that was tried.
    """
    probes = sorted((each for each in plan["probes"] if each["loss"] is not None), key=lambda each: each["rate"])
    best = lowest(probes)
    if best is None:
        return None
    return {
        "rate": best["rate"],
        "rows": [{**each, "is_best": each is best} for each in probes],
        "is_at_edge": len(probes) > 1 and best in (probes[0], probes[-1]),
    }
