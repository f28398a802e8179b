"""Cold start of versions that no replica holds: one load request for all who wait, then a wait for the table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import redis.asyncio as redis
from redis.exceptions import RedisError

from serving_client.protocol import WANTED_VERSION, WANTS, RoutingTable
from serving_client.router.table_follower import TableWatcher

WANTS_LENGTH = 1000
RECHECK_S = 1.0


class ColdVersions:
    """Requests that wait for cold versions to be loaded, `waiting` in number, each at most `deadline_s` seconds."""

    def __init__(self, valkey: redis.Redis, watcher: TableWatcher, deadline_s: float) -> None:
        self._valkey = valkey
        self._watcher = watcher
        self._deadline_s = deadline_s
        self._asked: dict[str, float] = {}
        self.waiting = 0

    async def wait(
        self, version: str, is_wanted: Callable[[], bool], until: float | None = None
    ) -> RoutingTable | None:
        """Ask for the version and wait for a table in which a replica holds it; return that table.

        None after the deadline, or after `until` (of time.monotonic()) if that is earlier, or once `is_wanted()` is
        False.
        """
        self.waiting += 1
        left = self._deadline_s if until is None else min(self._deadline_s, until - time.monotonic())
        try:
            async with asyncio.timeout(left):
                return await self._loaded(version, is_wanted)
        except TimeoutError:
            return None
        finally:
            self.waiting -= 1

    async def _loaded(self, version: str, is_wanted: Callable[[], bool]) -> RoutingTable | None:
        while is_wanted():
            await self._want(version)
            if table := await self._watcher.wait_for_replica(version, RECHECK_S):
                # It may be unloaded at any time: who comes then must not wait for the end of this request's interval.
                self._asked.pop(version, None)
                return table
        return None

    async def _want(self, version: str) -> None:
        """Ask the control plane to load the version; if Valkey fails, the next round asks again."""
        now = time.monotonic()
        if now - self._asked.get(version, -self._deadline_s) < self._deadline_s / 2:
            return
        self._asked[version] = now
        try:
            await self._valkey.xadd(WANTS, {WANTED_VERSION: version}, maxlen=WANTS_LENGTH, approximate=True)
        except (RedisError, OSError):
            self._asked.pop(version, None)
