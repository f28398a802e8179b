"""The load of each replica as this router sees it: requests in flight, and those whose prompt is still being read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

# Answers that end together free one replica for a moment. If only their number counted, it would get all of the next
# prompts, which then wait for each other: one whose first token has not come counts this much more.
PROMPT_WEIGHT = 4
# A whole answer does not show when its prompt was read: it counts as such for this long.
READING_S = 0.1


class ReplicaLoads:
    """Requests in flight by URL, and of these the ones whose prompt the replica still reads."""

    def __init__(self) -> None:
        self.in_flight: Counter[str] = Counter()
        self.reading: Counter[str] = Counter()

    def of(self, url: str) -> int:
        """Return the replica's load: its requests, the prompts that it still reads with PROMPT_WEIGHT more each."""
        return self.in_flight[url] + PROMPT_WEIGHT * self.reading[url]

    @contextmanager
    def counted(self, url: str) -> Iterator[None]:
        """Count a request in flight until the end of the block."""
        self.in_flight[url] += 1
        try:
            yield
        finally:
            self.in_flight[url] -= 1

    @contextmanager
    def reading_prompt(self, url: str, *, is_stream: bool) -> Iterator[None]:
        """Count a prompt as being read until the end of the block, that of a whole answer at most READING_S seconds."""
        self.reading[url] += 1
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self.reading[url] -= 1

        timer = None if is_stream else asyncio.get_running_loop().call_later(READING_S, end)
        try:
            yield
        finally:
            end()
            if timer:
                timer.cancel()
