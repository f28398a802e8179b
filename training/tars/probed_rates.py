"""The learning rate with the lowest loss among those that a probe tried. It imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def lowest(probes: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the probe {rate, loss} with the lowest loss; None if no probe reached a finite one (its loss is None)."""
    finite = [probe for probe in probes if probe["loss"] is not None]
    return min(finite, key=lambda probe: probe["loss"]) if finite else None


def lowest_rate(probes: Sequence[dict[str, Any]]) -> float | None:
    """Return the rate with the lowest loss, as it was tried; None if no probe reached a finite loss."""
    best = lowest(probes)
    return best["rate"] if best else None
