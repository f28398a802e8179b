"""Assignment of sessions and users to the arms of a rollout, by a hash alone: routers and statistics always agree."""

from __future__ import annotations

import hashlib
from typing import Literal

Arm = Literal["candidate", "control", "stable"]


def bucket_of(salt: str, unit: str) -> float:
    """Map a unit (a session or user) to a number in [0, 1): the first 8 bytes of sha256("salt|unit") over 2**64."""
    return int.from_bytes(hashlib.sha256(f"{salt}|{unit}".encode()).digest()[:8], "big") / 2**64


def arm_of(salt: str, unit: str, weight: float) -> Arm:
    """Return the arm of a unit (a session or user) when the candidate gets `weight` percent of the traffic.

    With p = weight / 100, the candidate has the buckets [0, p) and the control [max(p, 1-p), 1), of equal size up to
    one half. Both only grow while p grows to one half, so nobody changes between them during the ramp. The rest is
    "stable" and left out of the statistics.
    """
    bucket, share = bucket_of(salt, unit), weight / 100
    if bucket < share:
        return "candidate"
    return "control" if bucket >= max(share, 1 - share) else "stable"
