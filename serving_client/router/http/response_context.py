"""State of an answer while it passes through the router: its headers, and the report about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serving_client.protocol import Outcome
from serving_client.router.cache import Entry
from serving_client.router.reporting.metrics import CLIENT_CLOSED
from serving_client.router.reporting.outcomes import usage_of
from serving_client.router.resolve import Target
from serving_client.router.upstream.shadow_traffic import CapturedResponse

if TYPE_CHECKING:
    from opentelemetry.trace import Span

TAIL_BYTES = 4096


@dataclass
class Answer:
    """State of an answer in progress; times from time.perf_counter()."""

    target: Target
    response_id: str
    began: float
    status: int = 0
    first_byte: float | None = None
    tail: bytes = b""
    is_whole: bool = False
    cache: str = "bypass"
    entry: Entry | None = None
    captured: CapturedResponse | None = None
    trace: dict[str, str] = field(default_factory=dict)
    span: Span | None = None

    def headers(self) -> dict[str, str]:
        """Return the headers that name the answering version, its rollout arm, the response id and cache result."""
        named = {
            "X-Adapter-Version": self.target.version,
            "X-Rollout-Arm": self.target.arm,
            "X-Response-ID": self.response_id,
            "X-Cache": self.cache,
        }
        if self.target.arm != "none" and not self.target.is_sticky:
            named["X-Rollout-Sticky"] = "false"
        return named

    def saw(self, chunk: bytes) -> None:
        """Add a chunk of a stream. Usage comes at the end, so only the tail is kept."""
        if self.first_byte is None:
            self.first_byte = time.perf_counter()
        self._read(chunk)

    def is_all(self, content: bytes) -> None:
        """Add the whole answer in one piece, which gives no time of a first token."""
        self._read(content)
        self.is_whole = True

    def _read(self, chunk: bytes) -> None:
        self.tail = (self.tail + chunk)[-TAIL_BYTES:]
        for listener in (self.entry, self.captured):
            if listener:
                listener.saw(chunk)

    def outcome(self) -> Outcome:
        """Return the report; an abandoned answer gets 499, neither a success nor a failure of the version."""
        target = self.target
        return Outcome(
            response_id=self.response_id,
            at=time.time(),
            project=target.project,
            alias=target.alias,
            version=target.version,
            arm=target.arm,
            sticky=target.is_sticky,
            unit=target.unit_hash,
            status=self.status if self.is_whole or self.status >= 400 else CLIENT_CLOSED,
            ttft_ms=None if self.first_byte is None else (self.first_byte - self.began) * 1000,
            total_ms=(time.perf_counter() - self.began) * 1000,
            cache=self.cache,
            counted=target.is_counted,
            **usage_of(self.tail),
        )
