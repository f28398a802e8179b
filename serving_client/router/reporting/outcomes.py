"""Reports about answers, sent in batches off the request path and spooled to disk while Valkey is away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Sequence
from itertools import islice

import orjson
import redis.asyncio as redis
from redis.exceptions import RedisError

from serving_client.protocol import OUTCOMES, REPORTS
from serving_client.reports import Outcome
from serving_client.router.reporting.spool import Spool

# Number of entries, each with up to BATCH reports: at least a quarter of an hour's while nobody reads them.
STREAM_LENGTH = 10_000
QUEUE_LENGTH = 10_000
BATCH = 50
PAUSE_S = 0.1
RECHECK_S = 2.0
log = logging.getLogger(__name__)


class OutcomeReporter:
    """Sender of reports; `report` never waits. A report may arrive twice; losses are counted in `dropped`."""

    def __init__(self, valkey: redis.Redis, spool: Spool | None) -> None:
        self._valkey = valkey
        self._spool = spool
        self._waiting: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._lost = 0

    @property
    def dropped(self) -> int:
        """Number of reports that were lost: the queue or the spool was full, or the spool could not be written."""
        return self._lost + (self._spool.dropped if self._spool else 0)

    def report(self, outcome: Outcome) -> None:
        """Queue a report; if the queue is full, drop it and count that in `dropped`."""
        if len(self._waiting) >= QUEUE_LENGTH:
            self._lost += 1
            return
        self._waiting.append(orjson.dumps(outcome))
        self._arrived.set()

    async def run(self) -> None:
        """Send reports until cancelled; retry regularly what an earlier outage left in the spool."""
        while True:
            self._arrived.clear()
            await self.flush()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._arrived.wait()
            await asyncio.sleep(PAUSE_S)

    async def flush(self) -> None:
        """Send the queued reports, then the spooled ones.

        If sending fails, the queued ones move to the spool; without a spool they stay queued.
        """
        while self._waiting:
            batch = list(islice(self._waiting, BATCH))
            if not await self._send(batch):
                await self._put_aside()
                return
            self._forget(len(batch))
        if self._spool:
            await self._send_spooled(self._spool)

    async def _put_aside(self) -> None:
        """Move the queue to the spool; without one it stays in memory, up to the queue's length."""
        if self._spool:
            reports = list(self._waiting)
            await asyncio.to_thread(self._spool.append, reports)
            self._forget(len(reports))

    async def _send_spooled(self, spool: Spool) -> None:
        reports = await asyncio.to_thread(spool.read)
        for start in range(0, len(reports), BATCH):
            if not await self._send(reports[start : start + BATCH]):
                return
        if reports:
            spool.clear()

    async def _send(self, reports: Sequence[bytes]) -> bool:
        # One entry for all: a command for each would hold every request up for milliseconds.
        entry = {REPORTS: b"[" + b",".join(reports) + b"]"}
        try:
            await self._valkey.xadd(OUTCOMES, entry, maxlen=STREAM_LENGTH, approximate=True)  # type: ignore[arg-type]
        except (RedisError, OSError) as error:
            log.warning("Valkey does not take reports (%s); they are kept.", error)
            return False
        return True

    def _forget(self, count: int) -> None:
        for _ in range(count):
            self._waiting.popleft()
