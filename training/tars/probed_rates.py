"""The learning rate that an analysis shows: of its race, or of its probe's lowest loss. It imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def rate_of(plan: Mapping[str, Any]) -> float | None:
    """Return the rate that the plan's race advises, else that of its probe's lowest loss; None without either."""
    race = plan.get("race")
    return race["rate"]["advised"] if race else lowest_rate(plan.get("probes", ()))


def lowest(probes: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the probe {rate, loss} with the lowest loss; None if no probe reached a finite one (its loss is None)."""
    finite = [probe for probe in probes if probe["loss"] is not None]
    return min(finite, key=lambda probe: probe["loss"]) if finite else None


def lowest_rate(probes: Sequence[dict[str, Any]]) -> float | None:
    """Return the rate with the lowest loss, as it was tried; None if no probe reached a finite loss."""
    best = lowest(probes)
    return best["rate"] if best else None
