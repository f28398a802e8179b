"""The last good routing table: received from Valkey, saved on disk, awaited by requests to cold versions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import redis.asyncio as redis
from redis.exceptions import RedisError

from serving_client.protocol import ROUTING_CHANGES, ROUTING_TABLE, RoutingTable

POLL_S = 2.0
# A token that was revoked while the control plane was away is refused at the latest then.
MAX_AGE_S = 24 * 3600.0
RECONNECT_S = 0.5
log = logging.getLogger(__name__)


class TableWatcher:
    """Follower of the published routing table. `table` is None until a good one is known."""

    def __init__(self, valkey: redis.Redis, snapshot: Path, max_age_s: float = MAX_AGE_S) -> None:
        self.max_age_s = max_age_s
        self._valkey = valkey
        self._snapshot = snapshot
        self._changed = asyncio.Condition()
        self._seen: bytes | str | None = None
        self.table: RoutingTable | None = load_snapshot(snapshot)
        # The last whole table, without the changes of single aliases published since.
        self._whole = self.table

    def age_s(self) -> float:
        """Return the seconds since the control plane published the table; 0 without one."""
        return max(0.0, time.time() - self.table.published_at) if self.table else 0.0

    async def run(self) -> None:
        """Follow the published table until cancelled; while Valkey is away, log that and keep the last good one."""
        while True:
            try:
                await self._follow()
            except (RedisError, OSError) as error:
                log.warning("Valkey does not answer (%s); the last good table stays.", error)
                await asyncio.sleep(RECONNECT_S)

    async def _follow(self) -> None:
        async with self._valkey.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(ROUTING_TABLE)
            while True:
                await self._read()
                # A message wakes the watcher at once; the poll makes up for a lost message.
                await channel.get_message(timeout=POLL_S)

    async def _read(self) -> None:
        async with self._valkey.pipeline() as pipe:
            pipe.get(ROUTING_TABLE)
            pipe.zrange(ROUTING_CHANGES, 0, -1)
            text, changes = await pipe.execute()
        is_news = text is not None and text != self._seen
        self._seen = text
        await self.take(text if is_news else None, changes)

    async def take(self, text: bytes | str | None, changes: Sequence[bytes | str] = ()) -> None:
        """Use a published table and the changes since it, each only if it is newer than the present one.

        `text` is the table as JSON, None if it has not changed; each of `changes` is a table, as JSON, of only the
        aliases and versions that changed. What cannot be read is logged and ignored. The result is saved as the
        snapshot.
        """
        whole = readable(text) if text is not None else None
        if is_next := whole is not None and is_newer(whole, self._whole):
            self._whole = whole
        if self._whole:
            table = changed_since(self._whole, changes)
            if is_next or is_newer(table, self.table):
                await self._use(table, text if table is whole else None)

    async def _use(self, table: RoutingTable, text: bytes | str | None) -> None:
        self.table = table
        async with self._changed:
            self._changed.notify_all()
        text = text or table.to_json()
        await self._keep(text.encode() if isinstance(text, str) else text)

    async def _keep(self, text: bytes) -> None:
        try:
            await asyncio.to_thread(save_snapshot, self._snapshot, text)
        except OSError as error:
            log.error("The table is in use but could not be kept (%s): free or repair the disk.", error)

    async def wait_for_replica(self, version: str, timeout_s: float) -> RoutingTable | None:
        """Wait for a table in which a replica holds the version and return it; None after `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                while not (table := self._holding(version)):
                    await self._changed.wait()
                return table
        return None

    async def wait_for_newer(self, table: RoutingTable, timeout_s: float) -> bool:
        """Wait until another table than this one is in use; return False if none is after `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                while self.table is table:
                    await self._changed.wait()
                return True
        return False

    def _holding(self, version: str) -> RoutingTable | None:
        route = self.table.versions.get(version) if self.table else None
        return self.table if route and route.replicas else None


def readable(text: bytes | str) -> RoutingTable | None:
    """Parse a published table; return None, with an error in the log, if it cannot be read."""
    try:
        return RoutingTable.from_json(text)
    except ValueError as error:
        log.error("The published table cannot be read (%s); the last good one stays.", error)
        return None


def changed_since(table: RoutingTable, changes: Sequence[bytes | str]) -> RoutingTable:
    """Return the table with the changes of higher generations, in their order; one that cannot be read is skipped."""
    for change in map(readable, changes):
        if change and change.generation > table.generation:
            table = table.changed_by(change)
    return table


def is_newer(table: RoutingTable, current: RoutingTable | None) -> bool:
    """Return True if there is no current table, or this one has a higher generation or was published later.

    A later table of a lower generation follows a restore of Valkey or the database.
    """
    return current is None or table.generation > current.generation or table.published_at > current.published_at


def save_snapshot(path: Path, text: bytes) -> None:
    """Write digest and table to a temporary file and rename it: a crash leaves the old or the new snapshot."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_suffix(".partial")
    # The table holds the hashes of tokens.
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def load_snapshot(path: Path) -> RoutingTable | None:
    """Return the table saved by an earlier run; None without one, or, with an error in the log, if it is damaged."""
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            raise ValueError("its digest does not match")
        return RoutingTable.from_json(text)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.error("The snapshot %s is not used: %s.", path, error)
        return None
