"""The log of an outage: what is the same is said once a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

EVERY_S = 60.0


class OnceAMinute(logging.Filter):
    """Holds back a message that was said within the last minute, whatever its figures.

    A line for each attempt would fill a disk, and a pipe that nobody reads: then the next line stops the router.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said: dict[tuple[str, int, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        message = (record.name, record.levelno, str(record.msg))
        is_news = self._clock() - self._said.get(message, float("-inf")) >= EVERY_S
        if is_news:
            self._said[message] = self._clock()
        return is_news
