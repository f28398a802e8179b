"""Lengths of a dataset's rows in a base model's tokens, from a sample: what a maximum length cuts. No database."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.datasets.row_preview import PLAIN_READING, ReadingOfRows, apart, sequence_of, tokenizer_of
from training.lm import preference
from training.lm.token_sequences import IGNORED, TokenSequence, as_chat

SAMPLED_ROWS = 300


@dataclass(frozen=True)
class Measured:
    """A row's number of tokens, and the places of its first and last token that the loss counts; -1 without any.

    A preference pair has the longer side's number of tokens, and the other side's in `other`.
    """

    tokens: int
    first: int
    last: int
    other: int = 0

    def is_left_out(self, max_length: int) -> bool:
        """Return True if no token that the loss counts lies within the length."""
        return self.first < 0 or self.first >= max_length

    def loses_end(self, max_length: int) -> bool:
        """Return True if the row is trained without its last counted token, the end of its answer."""
        return not self.is_left_out(max_length) and self.last >= max_length


@dataclass(frozen=True)
class Sample:
    """The measured rows of a file that has `rows` rows in all."""

    measured: tuple[Measured, ...]
    rows: int

    @property
    def longest(self) -> int:
        """Return the number of tokens of the longest measured row; 0 without rows."""
        return max((row.tokens for row in self.measured), default=0)

    @property
    def is_whole(self) -> bool:
        """Return True if every row was measured."""
        return len(self.measured) == self.rows

    def share(self, count: int) -> int:
        """Scale a count of measured rows up to all rows, rounded."""
        return round(count * self.rows / max(len(self.measured), 1))

    def cut_to(self, max_length: int) -> dict[str, int]:
        """Return how many of all rows a maximum length would cut, leave out, and leave without their end."""
        return {
            "cut": self.share(sum(row.tokens > max_length for row in self.measured)),
            "left_out": self.share(sum(row.is_left_out(max_length) for row in self.measured)),
            "without_end": self.share(sum(row.loses_end(max_length) for row in self.measured)),
        }

    def mean_tokens(self, max_length: int) -> float:
        """Return the mean number of tokens of a row that a training reads within the length; 0 if it reads none.

        Both sides of a preference pair count.
        """
        trained = [row for row in self.measured if not row.is_left_out(max_length)]
        tokens = sum(min(count, max_length) for row in trained for count in (row.tokens, row.other))
        return tokens / max(len(trained), 1)


def sample_of(file: Path, model: Path, model_digest: str, rows: int, reading: ReadingOfRows = PLAIN_READING) -> Sample:
    """Measure a sample of the file's rows, drawn over all of it; `rows` is their number.

    With `reading.unpaired` a pair counts as two rows. Raises NotReadable if the tokenizer cannot be loaded or refuses a
    row.
    """
    tokenizer = tokenizer_of(model, model_digest)
    chosen = list(drawn(file, rows))
    each = list(apart(chosen)) if reading.unpaired else chosen
    return Sample(tuple(measured(row, tokenizer, reading) for row in each), rows * len(each) // len(chosen))


def drawn(file: Path, rows: int) -> Iterator[dict[str, Any]]:
    """Yield a random sample of SAMPLED_ROWS of the file's `rows` rows, or all of them, and always the first row.

    The sample is the same for every file of this number of rows.
    """
    chosen = {0, *random.Random(0).sample(range(rows), min(rows, SAMPLED_ROWS))}  # noqa: S311 - a sample, no secret
    with file.open("rb") as stream:
        for place, line in enumerate(stream):
            if place in chosen:
                yield json.loads(line)


def measured(row: dict[str, Any], tokenizer: Any, reading: ReadingOfRows = PLAIN_READING) -> Measured:
    """Return the lengths of a row as the recipes read it, both sides of a pair together.

    Raises NotReadable if the tokenizer or its chat template refuses the row.
    """
    is_preference = "chosen" in row or "label" in row
    (row,) = (preference.as_chat([row]) if is_preference else as_chat([row])) if reading.in_chat else [row]
    plain = replace(reading, in_chat=False)
    sides = [of_sequence(sequence_of(side, tokenizer, plain)) for side in apart([row])]
    other = min(side.tokens for side in sides) if len(sides) > 1 else 0
    if any(side.first < 0 for side in sides):
        return Measured(max(side.tokens for side in sides), -1, -1, other)
    tokens, first, last = (max(getattr(side, name) for side in sides) for name in ("tokens", "first", "last"))
    return Measured(tokens, first, last, other)


def of_sequence(sequence: TokenSequence) -> Measured:
    """Return the length of the sequence and the places of the first and last token that the loss counts."""
    return Measured(len(sequence.ids), *counted_between(sequence.labels))


def counted_between(labels: Sequence[int]) -> tuple[int, int]:
    """Return the places of the first and last label that the loss counts; (-1, -1) without any.

    The first token of a sequence never counts.
    """
    places = [place for place, label in enumerate(labels) if label != IGNORED and place]
    return (places[0], places[-1]) if places else (-1, -1)
