"""Rendering of rows as a training reads them: text with what the loss counts, and lengths in tokens. No database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby, islice
from pathlib import Path
from threading import Lock
from typing import Any

from training.datasets.record_forms import Row
from training.lm import preference
from training.lm.token_sequences import ANSWERS, IGNORED, UNCUT, DataError, TokenSequence, as_chat, tokenise

MEASURED_ROWS = 500
BINS = 24
# A preference row's side by its label.
SIDES = {True: "chosen", False: "rejected"}
# Characters of a row that a page shows.
SHOWN_CHARACTERS = 6000
IMPORTING = Lock()


class NotReadable(ValueError):
    """Raised when the model's tokenizer cannot render the rows; the message says why."""


class NoTokenizer(NotReadable):
    """Raised when the model has no tokenizer that can be loaded."""


@dataclass(frozen=True)
class ReadingOfRows:
    """The way a run reads its rows.

    With `in_chat` prompts are rendered by the chat template, otherwise they are read as they are. `loss` says what the
    loss counts. With `unpaired` the two sides of a preference pair are separate rows.
    """

    in_chat: bool = False
    loss: str = ANSWERS
    unpaired: bool = False


PLAIN_READING = ReadingOfRows()


@dataclass(frozen=True)
class Span:
    """A piece of a rendered row; `kind` is `counted` by the loss, `read` only, or `cut` off beyond max_length."""

    text: str
    kind: str


@dataclass(frozen=True)
class Rendered:
    """A row as a training reads it: its number of tokens, the number that the loss counts, and its text in spans.

    `tokens` includes those beyond max_length, `counted` does not. `side` is `chosen` or `rejected` for one side of a
    preference row, else "".
    """

    tokens: int
    counted: int
    spans: list[Span]
    side: str = ""


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens of the first `rows` rows; `bins` counts rows in steps of `step` tokens from 0.

    `cut` is the number of rows longer than max_length; `silent` that of rows which are left out because max_length cuts
    off all tokens that the loss counts; `cut_tokens` is the fraction of all tokens that are cut off.
    """

    rows: int
    median: int
    p95: int
    longest: int
    cut: int
    silent: int
    cut_tokens: float
    step: int
    bins: list[int]

    @property
    def cut_share(self) -> float:
        """Return the fraction of rows that are cut."""
        return self.cut / self.rows


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Convert errors of loading the folder's tokenizer inside the block to NoTokenizer."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing narrower for a file that it cannot read
        raise NoTokenizer(f"The tokenizer of {folder.name} cannot be loaded: {error}") from None


@lru_cache(maxsize=8)
def tokenizer_of(folder: Path, digest: str) -> Any:
    """Load the folder's tokenizer without network access; it is cached for later calls with the same folder and digest.

    Raises NoTokenizer if it cannot be loaded.
    """
    # The package replaces itself in sys.modules while it is imported: a second thread would get the one without names.
    with IMPORTING:
        from transformers import AutoTokenizer

    with readable(folder):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def rendered(row: Row, tokenizer: Any, max_length: int, reading: ReadingOfRows = PLAIN_READING) -> Rendered:
    """Return a row as the recipes read it, its text shortened to SHOWN_CHARACTERS.

    `tokens` is its whole length, `counted` the number of tokens within `max_length` that the loss counts. The row must
    not be a preference pair. Raises NotReadable if the tokenizer or its chat template refuses the row.
    """
    sequence = sequence_of(row, tokenizer, reading)
    spans = spans_of(sequence, tokenizer, max_length)
    side = SIDES[row["label"]] if "label" in row else ""
    return Rendered(len(sequence.ids), sequence.cut(max_length).targets, shortened(spans), side)


def apart(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield a preference pair as two rows, the preferred and the rejected answer; other rows unchanged."""
    for row in rows:
        yield from preference.unpaired([row]) if "chosen" in row else [row]


def sequence_of(row: Row, tokenizer: Any, reading: ReadingOfRows = PLAIN_READING) -> TokenSequence:
    """Return the tokens of a row, uncut; the row must not be a preference pair.

    Raises NotReadable if the tokenizer or its chat template refuses the row.
    """
    from jinja2 import TemplateError

    try:
        if "label" in row:
            (marked,) = preference.as_chat([row]) if reading.in_chat else [row]
            return preference.sequence_of(marked, marked["completion"], tokenizer)
        (worded,) = as_chat([row]) if reading.in_chat else [row]
        return tokenise(worded, tokenizer, UNCUT, reading.loss)
    except (DataError, TemplateError) as error:
        raise NotReadable(str(error)) from None


def spans_of(sequence: TokenSequence, tokenizer: Any, max_length: int) -> list[Span]:
    """Return the text of the sequence in spans of neighbouring tokens of one kind.

    A span's text is what its tokens add to the decoded text before them, because a tokenizer may drop a space at the
    start of a text.
    """
    kinds = [kind_of(place, label, max_length) for place, label in enumerate(sequence.labels)]
    spans, place, before = [], 0, ""
    for kind, group in groupby(kinds):
        place += len(list(group))
        text = tokenizer.decode(sequence.ids[:place], clean_up_tokenization_spaces=False)
        spans.append(Span(text[len(before) :], kind))
        before = text
    return spans


def kind_of(place: int, label: int, max_length: int) -> str:
    """Return the kind of the token at `place`: `cut`, `read` or `counted`.

    The first token is never predicted, only read.
    """
    if place >= max_length:
        return "cut"
    return "read" if label == IGNORED or place == 0 else "counted"


def shortened(spans: Sequence[Span]) -> list[Span]:
    """Return the spans with at most SHOWN_CHARACTERS characters in all; the last one then ends with an ellipsis."""
    shown_spans: list[Span] = []
    room = SHOWN_CHARACTERS
    for span in spans:
        if len(span.text) > room:
            return [*shown_spans, Span(span.text[:room] + " …", span.kind)]
        shown_spans.append(span)
        room -= len(span.text)
    return shown_spans


def lengths_of(sequences: Sequence[TokenSequence], max_length: int) -> Lengths:
    """Return statistics of the sequences' lengths, and of what `max_length` cuts.

    There must be at least one sequence.
    """
    sizes = sorted(len(sequence.ids) for sequence in sequences)
    step = -(-(sizes[-1] + 1) // BINS)
    bins = [0] * (sizes[-1] // step + 1)
    for size in sizes:
        bins[size // step] += 1
    beyond = sum(max(size - max_length, 0) for size in sizes)
    return Lengths(
        rows=len(sizes),
        median=sizes[len(sizes) // 2],
        p95=sizes[int(0.95 * (len(sizes) - 1))],
        longest=sizes[-1],
        cut=sum(size > max_length for size in sizes),
        silent=sum(not TokenSequence([], sequence.labels[:max_length]).targets for sequence in sequences),
        cut_tokens=beyond / max(sum(sizes), 1),
        step=step,
        bins=bins,
    )


def preview(
    file: Path, tokenizer: Any, max_length: int, reading: ReadingOfRows = PLAIN_READING, count: int = 8
) -> dict[str, Any]:
    """Return the first `count` rows of a split's file rendered, and the lengths of its first MEASURED_ROWS in tokens.

    They are the dicts of Rendered in `rendered` and that of Lengths in `lengths`; `max_length`, `in_chat` and `loss`
    repeat how rows are read. Each side of a preference pair counts as a row. The file must have a row. Raises
    NotReadable if the tokenizer or its chat template refuses one.
    """
    rows = list(islice(apart(rows_of(file)), MEASURED_ROWS))
    measured = [sequence_of(row, tokenizer, reading) for row in rows]
    lengths = lengths_of(measured, max_length)
    return {
        "rendered": [asdict(rendered(row, tokenizer, max_length, reading)) for row in apart(rows[:count])],
        "lengths": {**asdict(lengths), "cut_share": lengths.cut_share},
        "max_length": max_length,
        "in_chat": reading.in_chat,
        "loss": reading.loss,
    }


def rows_of(file: Path) -> Iterator[Row]:
    """Yield the rows of a stored split's file."""
    with file.open("rb") as stream:
        yield from (json.loads(line) for line in stream)
