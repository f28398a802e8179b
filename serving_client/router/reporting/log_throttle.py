"""Throttling of the log during an outage: equal messages are logged once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

EVERY_S = 60.0


class OnceAMinute(logging.Filter):
    """Log filter that drops a message logged within the last minute, ignoring its arguments.

    A line for each attempt would fill a disk, or a pipe that nobody reads, and then the next line blocks the router.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for a message that was not logged within the last minute; its arguments do not count."""
        message = (record.name, record.levelno, str(record.msg))
        is_news = self._clock() - self._said.get(message, float("-inf")) >= EVERY_S
        if is_news:
            self._said[message] = self._clock()
        return is_news
