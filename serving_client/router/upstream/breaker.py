"""Circuit breaker of each replica: one that keeps failing is asked last, and retried one request at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 5
PAUSE_S = 5.0


class Breaker:
    """Circuit breaker of each replica, by URL; it opens for `pause_s` seconds after `failures` failures in a row.

    A replica with an open breaker is asked last; after the pause, one request tests it.
    """

    def __init__(
        self, failures: int = FAILURES, pause_s: float = PAUSE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._failures, self._pause_s, self._clock = failures, pause_s, clock
        self._in_a_row: dict[str, int] = {}
        self._open_until: dict[str, float] = {}

    def is_open(self, url: str) -> bool:
        """Return True while the replica's breaker is open: others should be asked before it."""
        return self._clock() < self._open_until.get(url, 0.0)

    def trying(self, url: str) -> None:
        """Keep other requests from a replica whose breaker has opened while this one tests it; call it before each one.

        That lasts `pause_s` seconds, or until `answered`. For any other replica nothing changes.
        """
        if url in self._open_until:
            self._open_until[url] = self._clock() + self._pause_s

    def failed(self, url: str) -> None:
        """Count a failure in a row; at the limit open the replica's breaker for `pause_s` seconds."""
        self._in_a_row[url] = self._in_a_row.get(url, 0) + 1
        if self._in_a_row[url] >= self._failures:
            self._open_until[url] = self._clock() + self._pause_s

    def answered(self, url: str) -> None:
        """Close the breaker of a replica that answered."""
        self._in_a_row.pop(url, None)
        self._open_until.pop(url, None)

    def open_now(self) -> list[str]:
        """Return the replicas whose breaker is open, which are asked last."""
        return [url for url in self._open_until if self.is_open(url)]
