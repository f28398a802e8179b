"""Bodies of requests while they arrive: how large, how late, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from serving_client.router.errors import Refusal

MAX_BODY_BYTES = 4 * 2**20
# All bodies that the router holds, until their answers have begun.
MOST_HELD_BYTES = 256 * 2**20
BODY_S = 60.0


class Bodies:
    """The bytes of all bodies that this router holds, with a limit on their sum."""

    held_bytes = 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """Yield the count of one body's bytes, which are given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held_bytes -= share.taken_bytes


class Share:
    """The bytes that one body takes of those that the router may hold."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self.taken_bytes = bodies, 0

    def take(self, count: int) -> None:
        """Count more bytes.

        Raises Refusal 413 if the body is too large, and 503 if the router holds too many in all.
        """
        if self.taken_bytes + count > MAX_BODY_BYTES:
            raise Refusal(413, "body_too_large", "The body is over 4 MB.")
        if self._bodies.held_bytes + count > MOST_HELD_BYTES:
            raise Refusal(503, "busy", "The router holds too many requests: try again.", retry_after_s=1)
        self.taken_bytes += count
        self._bodies.held_bytes += count


async def read_body(request: Request, share: Share) -> bytes:
    """Read the body, counting its size while it arrives. Raises Refusal 408, 413 or 503."""
    parts = []
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                share.take(len(part))
                parts.append(part)
    except TimeoutError:
        raise Refusal(408, "body_too_slow", f"The body did not arrive within {BODY_S:.0f} s.") from None
    return b"".join(parts)
