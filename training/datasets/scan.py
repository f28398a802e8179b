"""The check and split of a file's rows: bad lines, copies, leaks and contradictions. About 40 bytes of memory a row."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.core.counts import counted
from training.datasets.line_errors import BadLine, LineError
from training.datasets.preferences import kind_of
from training.datasets.readers import Record
from training.datasets.record_forms import Row
from training.datasets.rows import Reading, content_hash, line_of, reading
from training.datasets.split import HELD_OUT_SHARE, Keys, Split, split

MAX_ERRORS = 100
# A file of so many bad lines is looked at no further.
MAX_BROKEN = 100_000
SPLITS = ("train", "eval")
# Lines that a warning names.
NAMED_LINES = 5
UNSAID, TRAIN, EVAL = 0, 1, 2
NAMES = {"answers": "answers", "pairs": "preference pairs", "labels": "answers marked good or bad"}
CONTRADICTIONS = {
    "answers": ("answers", "answer", "a prompt otherwise than an earlier row"),
    "pairs": ("prefers", "prefer", "the answer that an earlier row rejects"),
    "labels": ("marks", "mark", "an answer otherwise than an earlier row"),
}


class UnfoldsTooFar(ValueError):
    """Raised when the rows take far more bytes than the file, as in a file that was made to fill a disk."""


@dataclass(frozen=True)
class Report:
    """The outcome of a scan as plain values: errors, our names of the columns, number of rows by split, and warnings.

    `errors` are the first of `broken` bad lines. `read_as` names the forms that were recognised. `is_grouped` is True
    if the rows were split by groups, not by the file's own column.
    """

    errors: list[LineError]
    broken: int
    columns: list[str]
    splits: dict[str, int]
    warnings: list[str]
    read_as: str
    is_grouped: bool

    @property
    def rows(self) -> int:
        """Return the number of valid rows, of all splits; broken lines are not counted."""
        return sum(self.splits.values())


@dataclass
class Scan:
    """The state and result of a scan.

    `errors` are the first MAX_ERRORS of `broken` bad lines; `hashes` maps splits to the rows' 64-bit content hashes;
    `forms` and `unused` count the rows of each recognised form and unused column; `notices` map each notice to the
    number of its rows and their first lines.
    """

    errors: list[LineError] = field(default_factory=list)
    broken: int = 0
    columns: set[str] = field(default_factory=set)
    forms: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)
    notices: dict[str, list[int]] = field(default_factory=dict)
    hashes: dict[str, array[int]] = field(default_factory=lambda: {split: array("Q") for split in SPLITS})
    lines: array[int] = field(default_factory=lambda: array("Q"))
    contents: array[int] = field(default_factory=lambda: array("Q"))
    named_splits: array[int] = field(default_factory=lambda: array("B"))
    keys: Keys = field(default_factory=Keys.none)
    division: Split | None = None

    @property
    def splits(self) -> dict[str, int]:
        """Return the number of rows by split."""
        return {split: len(hashes) for split, hashes in self.hashes.items()}

    @property
    def rows(self) -> int:
        """Return the number of valid rows, of all splits; broken lines are not counted."""
        return len(self.contents)

    @property
    def read_as(self) -> str:
        """Return the name of the recognised form; if there are several, each with its number of rows."""
        if len(self.forms) == 1:
            return next(iter(self.forms))
        return ", ".join(f"{form} ({counted(count, 'row')})" for form, count in self.forms.most_common())

    @property
    def kind(self) -> str:
        """Return the kind of the rows: `pairs`, `labels` or `answers`."""
        return kind_of(self.columns)

    def refuse(self, number: int, error: BadLine) -> None:
        """Count a broken line, and keep its error if it is among the first MAX_ERRORS."""
        self.broken += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(LineError(number, error.column, error.code, str(error)))

    def report(self) -> Report:
        """Return the result as a Report."""
        return Report(
            self.errors,
            self.broken,
            sorted(self.columns),
            self.splits,
            self.warnings(),
            self.read_as,
            self.division is not None,
        )

    def taken(
        self, number: int, record: dict[str, Any] | BadLine, mapping: dict[str, str] | None, *, escape: bool
    ) -> Row:
        """Return the row of a record, which is counted; `number` is that of its line.

        Raises BadLine, without counting it, for a record that cannot be used.
        """
        if isinstance(record, BadLine):
            raise record
        row = reading(record, mapping, escape=escape)
        self.note(number, row)
        return row.row

    def note(self, number: int, row: Reading) -> None:
        """Count a valid row: its form, columns, line, hash and split.

        Raises BadLine if it holds another kind of data than the rows before it.
        """
        if self.forms and kind_of(row.row) != self.kind:
            message = f"The rows before hold {NAMES[self.kind]}, this one {NAMES[kind_of(row.row)]}: separate them."
            raise BadLine("", "mixed_forms", message)
        self.forms[row.form] += 1
        self.unused.update(row.unused)
        for notice in row.notices:
            seen = self.notices.setdefault(notice, [0])
            seen[0] += 1
            if len(seen) <= NAMED_LINES:
                seen.append(number)
        self.columns |= set(row.row)
        self.lines.append(number)
        self.contents.append(content_hash(row.row))
        self.named_splits.append({None: UNSAID, False: TRAIN, True: EVAL}[row.held_out])
        self.keys.add(row.row)

    def divide(self) -> Any:
        """Divide the rows into splits, store each split's hashes, and return a mask that is True for held-out rows.

        They are divided by the column `split` if a row is held out by it, else by groups.
        """
        named = np.array(self.named_splits, np.uint8)
        if (named == EVAL).any():
            held_out = named == EVAL
        else:
            self.division = split(self.keys)
            held_out = self.division.held_out
        contents = np.array(self.contents, np.uint64)
        for name, chosen in (("train", contents[~held_out]), ("eval", contents[held_out])):
            self.hashes[name] = array("Q", chosen.tobytes())
        return held_out

    def distinct(self, split: str) -> Any:
        """Return the split's content hashes, sorted and each once, as an array of uint64."""
        return np.unique(np.frombuffer(self.hashes[split], np.uint64)) if self.hashes[split] else np.empty(0, np.uint64)

    def warnings(self) -> list[str]:
        """Return warnings on copies, leaks, contradictions, large groups, unused columns, and few rows."""
        return [*self.of_content(), *self.of_groups(), *self.of_columns(), *self.of_size()]

    def of_content(self) -> Iterable[str]:
        """Yield warnings on rows that are copies, held-out rows that are also trained on, and contradicting rows."""
        train, held_out = (self.distinct(split) for split in SPLITS)
        leaked = len(np.intersect1d(train, held_out, assume_unique=True))
        if copies := self.rows - (len(train) + len(held_out) - leaked):
            rows = counted(copies, "row is an exact copy of another", "rows are exact copies of others")
            yield f"{rows}, apart from spaces and case."
        if leaked:
            yield (
                f"{counted(leaked, 'held-out row is', 'held-out rows are')} also trained on, so the evaluation is too "
                "optimistic: give copies the same document."
            )
        if lines := self.contradicting():
            one, several, otherwise = CONTRADICTIONS[self.kind]
            rows = counted(len(lines), f"row {one}", f"rows {several}")
            yield f"{rows} {otherwise} ({named(lines[:NAMED_LINES], len(lines))}): keep one of them."

    def contradicting(self) -> list[int]:
        """Return the numbers of lines whose prompt occurred before with another answer, whatever their Unicode form."""
        prompts, contents = np.array(self.keys.prompt_hashes, np.uint64), np.array(self.contents, np.uint64)
        order = np.lexsort((np.arange(len(prompts)), prompts))
        firsts = np.unique(prompts, return_index=True)[1]
        first_of = np.repeat(firsts, np.diff([*np.searchsorted(prompts[order], np.unique(prompts)), len(prompts)]))
        differs = contents[order] != contents[first_of]
        has_prompt = prompts[order] != 0
        return sorted(np.array(self.lines, np.uint64)[order][differs & has_prompt].tolist())

    def of_groups(self) -> Iterable[str]:
        """Yield a warning if rows were split by groups and the largest group exceeds HELD_OUT_SHARE of them.

        A file that is one single group gets none.
        """
        if self.division and self.division.is_possible and self.division.largest > max(1, HELD_OUT_SHARE * self.rows):
            share = 100 * self.division.largest / self.rows
            yield (
                f"One group has {self.division.largest} of {counted(self.rows, 'row')} ({share:.0f} %): rows of one "
                "document or with one prompt stay together, so "
                f"{counted(self.splits['eval'], 'row is', 'rows are')} held out."
            )

    def of_columns(self) -> Iterable[str]:
        """Yield warnings on columns that nothing reads, and the notices of rows with their first lines."""
        for name, count in sorted(self.unused.items()):
            yield f"The column {name!r} is not used ({counted(count, 'row has', 'rows have')} it)."
        for notice, (count, *lines) in sorted(self.notices.items()):
            yield f"In {counted(count, 'row')} {notice} ({named(lines, count)})."

    def of_size(self) -> Iterable[str]:
        """Yield a warning if there are fewer than 100 rows."""
        if self.rows < 100:
            yield "Fewer than 100 rows: expect a weak adapter and an imprecise evaluation."


def named(lines: Sequence[int], count: int) -> str:
    """Return the first lines of `count` in words: "line 7", "lines 7, 9, ..."."""
    return f"line{'s' if count > 1 else ''} {', '.join(map(str, lines))}{', ...' if count > len(lines) else ''}"


def scan(
    records: Iterable[Record],
    folder: Path,
    mapping: dict[str, str] | None = None,
    *,
    escape: bool = False,
    most_bytes: int | None = None,
) -> Scan:
    """Write the valid records to `folder`/train.jsonl and eval.jsonl; return the result.

    A bad record is counted and left out; the scan stops after MAX_BROKEN of them. Raises NotThisFormat, and
    UnfoldsTooFar if the rows exceed `most_bytes`; None is no limit.
    """
    result, every, written = Scan(), folder / "every.jsonl", 0
    with every.open("w", encoding="utf-8") as file:
        for number, record in records:
            try:
                written += file.write(line_of(result.taken(number, record, mapping, escape=escape)))
            except BadLine as error:
                result.refuse(number, error)
                if result.broken >= MAX_BROKEN:
                    break
            if most_bytes is not None and written > most_bytes:
                raise UnfoldsTooFar(f"The rows take over {most_bytes >> 20} MB, too much for a file of this size.")
    part(every, result.divide(), folder)
    return result


def part(every: Path, held_out: Any, folder: Path) -> None:
    """Write each line of the file `every` to its split's file, and delete `every`.

    `held_out` is a mask of its lines.
    """
    with ExitStack() as open_files:
        source = open_files.enter_context(every.open("rb"))
        train, evaluated = (open_files.enter_context(place.open("wb")) for place in places(folder).values())
        for line, is_held_out in zip(source, held_out.tolist(), strict=True):
            (evaluated if is_held_out else train).write(line)
    every.unlink()


def places(folder: Path) -> dict[str, Path]:
    """Return the path of each split's file."""
    return {split: folder / f"{split}.jsonl" for split in SPLITS}
