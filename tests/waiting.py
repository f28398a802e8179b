"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

# On a busy machine a process takes several times as long. A test that claims a time measures it itself.
PATIENCE = 4


def wait_until(condition: Callable[[], object], timeout_s: float = 10.0, what: str = "") -> None:
    """Return as soon as the condition holds. Raises AssertionError after `timeout_s`, stretched for a busy machine."""
    deadline = time.monotonic() + PATIENCE * timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {PATIENCE * timeout_s} s: {what or condition}")
        time.sleep(0.05)
