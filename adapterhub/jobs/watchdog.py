"""A watchdog that ends an idle worker which takes no messages although some wait.

After its connection broke silently Celery may wait for ever. The supervisor of the worker starts it again.
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

CHECK_EVERY_S, DEAF_S = 5.0, 60.0
log = logging.getLogger(__name__)


class Watchdog(threading.Thread):
    """A thread that ends its process when messages wait and none was taken for DEAF_S seconds.

    The worker is idle then, so no work is lost.
    """

    def __init__(self, queues: Iterable[str]) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._queues = list(queues)
        self._taken = -1
        self._last_sign = time.monotonic()

    def run(self) -> None:
        """Check every CHECK_EVERY_S seconds; log and end the process when messages wait and none is taken."""
        while not self.is_deaf():
            time.sleep(CHECK_EVERY_S)
        log.critical("Messages wait, and none was taken for %d s: this worker ends, to be started again.", DEAF_S)
        os._exit(os.EX_TEMPFAIL)

    def is_deaf(self) -> bool:
        """Return True if messages have waited for DEAF_S seconds while none was taken and no work was in progress."""
        processed = sum(state.total_count.values())
        if processed != self._taken or state.reserved_requests or not self._waiting():
            self._taken, self._last_sign = processed, time.monotonic()
        return time.monotonic() - self._last_sign > DEAF_S

    def _waiting(self) -> int:
        """Count the messages in this worker's queues over a separate connection; 0 while Valkey does not answer."""
        try:
            with redis.Redis.from_url(settings.REDIS_URL, socket_timeout=CHECK_EVERY_S) as client:
                return sum(int(client.llen(name)) for name in self._queues)
        except redis.RedisError:
            return 0
