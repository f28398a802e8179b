"""The arm of a unit, a function of salt, unit and weight alone: routers and statistics agree without talking."""

from __future__ import annotations

import hashlib
from typing import Literal

Arm = Literal["candidate", "control", "stable"]


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
