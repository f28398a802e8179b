"""Reports about answers, sent in batches off the request path; on disk while Valkey is away."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import redis.asyncio as redis
from redis.exceptions import RedisError

STREAM = "ah:outcomes"
STREAM_LENGTH = 100_000
QUEUE_LENGTH = 10_000
BATCH = 200
PAUSE_S = 0.2
SPOOL_BYTES = 64 * 2**20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """One answer: `at` in epoch seconds, times in milliseconds, `unit` as sha256 hex."""

    response_id: str
    at: float
    project: str
    alias: str | None
    version: str
    arm: str
    sticky: bool
    unit: str | None
    status: int
    ttft_ms: float | None
    total_ms: float
    prompt_tokens: int
    completion_tokens: int
    cache: str = "bypass"


class OutcomeReporter:
    """`report` never waits; a full queue drops the report and counts it."""

    def __init__(self, valkey: redis.Redis, spool: Path | None) -> None:
        self._valkey = valkey
        self._spool = spool
        self._queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_LENGTH)
        self.dropped = 0

    def report(self, outcome: Outcome) -> None:
        """Hand over a report."""
        try:
            self._queue.put_nowait(orjson.dumps(asdict(outcome)))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self.flush([await self._queue.get()])
            await asyncio.sleep(PAUSE_S)

    async def drain(self) -> None:
        """Send what is left at the end."""
        await self.flush([])

    async def flush(self, reports: list[bytes]) -> None:
        """Send everything queued; what Valkey does not take goes to the spool, and comes back before newer reports."""
        while not self._queue.empty():
            reports.append(self._queue.get_nowait())
        waiting = self._unspool() + reports
        for start in range(0, len(waiting), BATCH):
            if not await self._send(waiting[start : start + BATCH]):
                self._keep(waiting[start:])
                return

    async def _send(self, reports: list[bytes]) -> bool:
        try:
            async with self._valkey.pipeline(transaction=False) as pipe:
                for report in reports:
                    pipe.xadd(STREAM, {"o": report}, maxlen=STREAM_LENGTH, approximate=True)
                await pipe.execute()
        except (RedisError, OSError) as error:
            log.warning("Valkey does not take reports (%s); they are spooled.", error)
            return False
        return True

    def _unspool(self) -> list[bytes]:
        if self._spool is None or not self._spool.exists():
            return []
        lines = self._spool.read_bytes().splitlines()
        self._spool.unlink()
        return lines

    def _keep(self, reports: list[bytes]) -> None:
        """Append to the spool, up to its cap; the newest are dropped first."""
        size = self._spool.stat().st_size if self._spool and self._spool.exists() else 0
        if self._spool is None or size > SPOOL_BYTES:
            self.dropped += len(reports)
            return
        self._spool.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._spool.open("ab") as stream:
            stream.writelines(report + b"\n" for report in reports)
