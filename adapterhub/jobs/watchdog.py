"""A worker that is connected and deaf: messages wait, it has nothing to do, and it takes none. It must not stay so.

After a connection that broke without a word Celery may wait for ever. Whoever started the worker starts it again.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable

import redis
from celery.worker import state
from django.conf import settings

LOOK_S, DEAF_S = 5.0, 60.0
log = logging.getLogger(__name__)


class Watchdog(threading.Thread):
    """Ends its process when that is deaf; it is idle then, so that nothing is lost."""

    def __init__(self, queues: Iterable[str]) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._queues = list(queues)
        self._taken = -1
        self._last_sign = time.monotonic()

    def run(self) -> None:
        while not self.is_deaf():
            time.sleep(LOOK_S)
        log.critical("Messages wait, and none was taken for %d s: this worker ends, to be started again.", DEAF_S)
        os._exit(os.EX_TEMPFAIL)

    def is_deaf(self) -> bool:
        """Look once: a message that was taken, work that is done, and an empty queue are signs of life."""
        taken = sum(state.total_count.values())
        if taken != self._taken or state.reserved_requests or not self._waiting():
            self._taken, self._last_sign = taken, time.monotonic()
        return time.monotonic() - self._last_sign > DEAF_S

    def _waiting(self) -> int:
        """Messages in our queues, asked over a connection of its own; none while Valkey is away."""
        try:
            with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=LOOK_S) as client:
                return sum(int(client.llen(name)) for name in self._queues)  # type: ignore[arg-type]
        except redis.RedisError:
            return 0
