"""Limits on the bodies of requests: their size, their time to arrive, and the memory that all take together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from serving_client.router.errors import Refusal

MAX_BODY_BYTES = 4 * 2**20
# All bodies that the router holds, until their answers have begun; those of one project take half of it.
MOST_HELD_BYTES = 256 * 2**20
# Parsed, an object or a list takes about so many bytes, and another value so many.
OPENED_BYTES, VALUE_BYTES = 232, 40
MOST_PARSED_BYTES = 64 * 2**20
BODY_S = 60.0


class Bodies:
    """The bytes of all request bodies that this router holds, limited in all and for each project."""

    def __init__(self) -> None:
        self.held_bytes = Counter[str]()

    @contextmanager
    def share(self, project: str) -> Iterator[Share]:
        """Yield the count of one body's bytes; at the end of the block they are subtracted from the project's again."""
        share = Share(self, project)
        try:
            yield share
        finally:
            self.held_bytes[project] -= share.taken_bytes
            if not self.held_bytes[project]:
                del self.held_bytes[project]


class Share:
    """The bytes that one body takes of those that the router may hold, raw and parsed."""

    def __init__(self, bodies: Bodies, project: str) -> None:
        self._bodies, self._project, self.taken_bytes = bodies, project, 0

    def take(self, count: int) -> None:
        """Count more bytes of the raw body.

        Raises Refusal 413 if it is too large, and 503 if the router, or this project, holds too many in all.
        """
        if self.taken_bytes + count > MAX_BODY_BYTES:
            raise Refusal(413, "body_too_large", "The body is over 4 MB.")
        self._hold(count)

    def unfold(self, raw: bytes) -> None:
        """Count an estimate of the memory that the body will take once it is parsed.

        Raises Refusal 413 if it holds too many values, and 503 if others leave no room.
        """
        count = OPENED_BYTES * (raw.count(b"{") + raw.count(b"[")) + VALUE_BYTES * raw.count(b",")
        if count > MOST_PARSED_BYTES:
            raise Refusal(413, "too_many_values", "The body holds too many values: send more requests.")
        self._hold(count)

    def _hold(self, count: int) -> None:
        counts = self._bodies.held_bytes
        if counts.total() + count > MOST_HELD_BYTES or counts[self._project] + count > MOST_HELD_BYTES // 2:
            raise Refusal(503, "busy", "The router holds too many requests: try again.", retry_after_s=1)
        self.taken_bytes += count
        counts[self._project] += count


async def read_body(request: Request, share: Share) -> bytes:
    """Read the body, counting its size in `share` while it arrives.

    Raises Refusal 408 if it takes over BODY_S seconds, 413 if it is too large, 415 for a compressed one, and 503 if too
    much is held already; ClientDisconnect if the client leaves.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"The body must not be compressed: send it without Content-Encoding {encoding[:40]!r}."
        raise Refusal(415, "body_compressed", message)
    parts = []
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                share.take(len(part))
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, "body_too_slow", f"The body did not arrive within {BODY_S:.0f} s.") from None
    return b"".join(parts)
