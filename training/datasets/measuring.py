"""A dataset's rows in a base model's tokens, from a sample of them: what a maximum length cuts. No database."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.datasets.rendering import PLAIN_READING, ReadingOfRows, sequence_of, tokenizer_of
from training.lm.data import IGNORED

SAMPLED_ROWS = 300


@dataclass(frozen=True)
class Measured:
    """A row's tokens, and the places of its first and last counted token; -1 where none is counted."""

    tokens: int
    first: int
    last: int

    def is_left_out(self, max_length: int) -> bool:
        """Return True if nothing that the loss counts lies within the length."""
        return self.first < 0 or self.first >= max_length

    def loses_end(self, max_length: int) -> bool:
        """Return True if the row is trained without its last counted token, the end of its answer."""
        return not self.is_left_out(max_length) and self.last >= max_length


@dataclass(frozen=True)
class Sample:
    """Measured rows of a file with `rows` in all."""

    measured: tuple[Measured, ...]
    rows: int

    @property
    def longest(self) -> int:
        """Return the tokens of the longest measured row."""
        return max((row.tokens for row in self.measured), default=0)

    @property
    def is_whole(self) -> bool:
        """Return True if every row was measured."""
        return len(self.measured) == self.rows

    def share(self, count: int) -> int:
        """Return how many of all rows the count of measured ones stands for."""
        return round(count * self.rows / max(len(self.measured), 1))

    def cut_to(self, max_length: int) -> dict[str, int]:
        """Return how many of all rows a maximum length cuts, leaves out, and trains without their end."""
        return {
            "cut": self.share(sum(row.tokens > max_length for row in self.measured)),
            "left_out": self.share(sum(row.is_left_out(max_length) for row in self.measured)),
            "without_end": self.share(sum(row.loses_end(max_length) for row in self.measured)),
        }

    def mean_tokens(self, max_length: int) -> float:
        """Return the mean tokens that a training reads of a row."""
        trained = [min(row.tokens, max_length) for row in self.measured if not row.is_left_out(max_length)]
        return sum(trained) / max(len(trained), 1)


def sample_of(file: Path, model: Path, model_digest: str, rows: int, reading: ReadingOfRows = PLAIN_READING) -> Sample:
    """Measure a sample of the file's rows, drawn over all of it. Raises NotReadable."""
    tokenizer = tokenizer_of(model, model_digest)
    return Sample(tuple(measured(row, tokenizer, reading) for row in drawn(file, rows)), rows)


def drawn(file: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Yield a sample of the rows, the same for the same file; the first row is always in it."""
    chosen = {0, *random.Random(0).sample(range(rows), min(rows, SAMPLED_ROWS))}  # noqa: S311 - a sample, no secret
    with file.open("rb") as stream:
        for place, line in enumerate(stream):
            if place in chosen:
                yield json.loads(line)


def measured(row: dict[str, Any], tokenizer: Any, reading: ReadingOfRows = PLAIN_READING) -> Measured:
    """Measure a row as the recipes read it. Raises NotReadable."""
    sequence = sequence_of(row, tokenizer, reading)
    first, last = counted_between(sequence.labels)
    return Measured(len(sequence.ids), first, last)


def counted_between(labels: Sequence[int]) -> tuple[int, int]:
    """Return the places of the first and the last counted token; the first token of a row is never predicted."""
    places = [place for place, label in enumerate(labels) if label != IGNORED and place]
    return (places[0], places[-1]) if places else (-1, -1)
