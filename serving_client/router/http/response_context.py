"""State of an answer while it passes through the router: its headers, and the report about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serving_client.protocol import TokenRoute
from serving_client.reports import Outcome
from serving_client.router.http.stream_usage import StreamReader
from serving_client.router.reporting.metrics import CLIENT_CLOSED
from serving_client.router.reporting.response_checks import text_of
from serving_client.router.reporting.usage import CHARACTERS_A_TOKEN, Usage, tokens_of_text, usage_in
from serving_client.router.resolve import Target
from serving_client.router.response_cache import Entry
from serving_client.router.upstream.shadow_traffic import CapturedResponse

if TYPE_CHECKING:
    from opentelemetry.trace import Span

MOST_PARSED_BYTES = 4 * 2**20


@dataclass
class Answer:
    """State of an answer in progress; times from time.perf_counter()."""

    target: Target
    token: TokenRoute
    response_id: str
    began: float
    status: int = 0
    first_byte: float | None = None
    usage: Usage | None = None
    question_tokens: int = 0  # an estimate, for an engine that does not count
    is_whole: bool = False
    has_text: bool = True
    cache: str = "bypass"
    is_cold: bool = False
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
        """Pass a chunk of a stream to the cache entry and the recorder; the first sets the time to the first byte."""
        if self.first_byte is None:
            self.first_byte = time.perf_counter()
        self._pass(chunk)

    def streamed(self, reader: StreamReader) -> None:
        """Take the results of a stream that has ended: its token counts, and the status if the engine failed."""
        self.stopped(reader)
        self.status = reader.failure or self.status
        self.is_whole = True

    def stopped(self, reader: StreamReader) -> None:
        """Take the token counts of a stream, whole or not.

        Until the engine has sent them, they are estimated from the question and the number of parts.
        """
        self.usage = reader.usage or Usage(self.question_tokens, reader.parts, is_estimated=True)

    def is_all(self, content: bytes) -> None:
        """Pass a whole answer, which came in one piece, to the cache entry and the recorder.

        The time to the first byte is not set. With status 200, read its token counts, or estimate them if it has none.
        """
        self._pass(content)
        self.is_whole = True
        if self.status == 200:
            self.usage = usage_in(content) or self._estimated(content)

    def _estimated(self, content: bytes) -> Usage:
        # Parsed, an answer may take twenty times its size.
        is_short = len(content) <= MOST_PARSED_BYTES
        tokens = tokens_of_text(text_of(content)) if is_short else len(content) // CHARACTERS_A_TOKEN
        return Usage(self.question_tokens, tokens if self.has_text else 0, is_estimated=True)

    def _pass(self, chunk: bytes) -> None:
        for listener in (self.entry, self.captured):
            if listener:
                listener.saw(chunk)

    def outcome(self) -> Outcome:
        """Return the report of the answer.

        If the client left before its end, the status is 499, neither a success nor a failure of the version.
        """
        target, usage = self.target, self.usage or Usage()
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
            cold=self.is_cold,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            tokens_estimated=usage.is_estimated,
            # Embeddings have no text that could be empty.
            empty=None if self.has_text else False,
        )
