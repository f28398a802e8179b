"""One pass over a file that finds bad lines, copies and leaks, and writes the split. Memory: 8 bytes a row."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets.readers import Record
from training.datasets.rows import BadLine, LineError, Row, content_hash, is_held_out, line_of, normal_form, renamed

MAX_ERRORS = 100
# A file of so many bad lines is looked at no further.
MAX_BROKEN = 100_000
SPLITS = ("train", "eval")


class UnfoldsTooFar(ValueError):
    """The rows take so much more than the file that it was made to fill a disk."""


@dataclass(frozen=True)
class Report:
    """Outcome of a scan as plain values: the first errors of `broken` bad lines, and what the rows are."""

    errors: list[LineError]
    broken: int
    columns: list[str]
    splits: dict[str, int]
    warnings: list[str]

    @property
    def rows(self) -> int:
        """Return the number of all rows."""
        return sum(self.splits.values())


@dataclass
class Scan:
    """Result of a scan.

    `errors`: the first MAX_ERRORS of `broken` bad lines; `hashes`: split -> the rows' 64-bit content hashes.
    """

    errors: list[LineError] = field(default_factory=list)
    broken: int = 0
    columns: set[str] = field(default_factory=set)
    hashes: dict[str, array[int]] = field(default_factory=lambda: {split: array("Q") for split in SPLITS})

    @property
    def splits(self) -> dict[str, int]:
        """Return the number of rows by split."""
        return {split: len(hashes) for split, hashes in self.hashes.items()}

    @property
    def rows(self) -> int:
        """Return the number of all rows."""
        return sum(self.splits.values())

    def refuse(self, number: int, error: BadLine) -> None:
        """Count a broken line, and keep its error among the first ones."""
        self.broken += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(LineError(number, error.column, error.code, str(error)))

    def report(self) -> Report:
        """Return the result without the hashes."""
        return Report(self.errors, self.broken, sorted(self.columns), self.splits, self.warnings())

    def distinct(self, split: str) -> Any:
        """Return the split's sorted, unique hashes."""
        return np.unique(np.frombuffer(self.hashes[split], np.uint64)) if self.hashes[split] else np.empty(0, np.uint64)

    def warnings(self) -> list[str]:
        """Return warnings about exact copies, held-out rows that are also trained on, and fewer than 100 rows."""
        train, held_out = (self.distinct(split) for split in SPLITS)
        leaked = len(np.intersect1d(train, held_out, assume_unique=True))
        copies = self.rows - (len(train) + len(held_out) - leaked)
        messages = []
        if copies:
            messages.append(f"{copies} rows are exact copies of others, spaces and case aside.")
        if leaked:
            messages.append(
                f"{leaked} held-out rows are also trained on, so the evaluation flatters: give copies one document."
            )
        if self.rows < 100:
            messages.append("Fewer than 100 rows: expect a weak adapter and a noisy evaluation.")
        return messages


def scan(
    records: Iterable[Record], folder: Path, mapping: dict[str, str] | None = None, *, most_bytes: int | None = None
) -> Scan:
    """Write the valid records to FOLDER/train.jsonl and eval.jsonl. Raises NotThisFormat, UnfoldsTooFar."""
    result, written = Scan(), 0
    with ExitStack() as open_files:
        files = {
            split: open_files.enter_context(place.open("w", encoding="utf-8"))
            for split, place in places(folder).items()
        }
        for number, record in records:
            row = row_of(record, mapping or {})
            if isinstance(row, BadLine):
                result.refuse(number, row)
                if result.broken >= MAX_BROKEN:
                    break
                continue
            split = "eval" if is_held_out(row) else "train"
            written += files[split].write(line_of(row))
            if most_bytes is not None and written > most_bytes:
                raise UnfoldsTooFar(f"The rows take over {most_bytes >> 20} MB, too much for a file of this size.")
            result.hashes[split].append(content_hash(row))
            result.columns |= set(row)
    return result


def places(folder: Path) -> dict[str, Path]:
    """Return the path of each split's file."""
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


def row_of(record: dict[str, Any] | BadLine, mapping: dict[str, str]) -> Row | BadLine:
    """Return the record in its normal form, or its error."""
    if isinstance(record, BadLine):
        return record
    try:
        return normal_form(renamed(record, mapping))
    except BadLine as error:
        return error
