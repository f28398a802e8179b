"""Access to Valkey on the request path: a short timeout, and no calls for a while after a failure."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


class Patience:
    """Fail-fast guard: after a failure no call is made for `pause_s`, so that requests do not wait for Valkey."""

    def __init__(self, timeout_s: float = 0.25, pause_s: float = 1.0) -> None:
        self._timeout_s, self._pause_s = timeout_s, pause_s
        self._not_before = 0.0

    async def ask(self, question: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """Await `question()` and return its result; None, at once, while calls are paused after a failure.

        If Valkey fails or takes longer than the timeout, that is logged, calls are paused, and None is returned.
        """
        if time.monotonic() < self._not_before:
            return None
        try:
            async with asyncio.timeout(self._timeout_s):
                return await question()
        except (RedisError, OSError) as error:
            self._not_before = time.monotonic() + self._pause_s
            log.warning("Valkey does not answer a request (%r): it goes on without.", error)
            return None
