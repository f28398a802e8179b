"""Preference rows as labelled token sequences: pairs, and answers that are marked good or bad."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from training.lm.token_sequences import IGNORED, UNCUT, BadRow, Cuts, DataError, Row, TokenSequence, read_rows, tokenise

SIDES = ("chosen", "rejected")
# The turns of Anthropic's HH-RLHF.
SPOKEN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Answer:
    """A tokenised prompt with an answer to it, whose tokens have labels.

    `is_good` is True for a preferred answer, or one marked as good.
    """

    sequence: TokenSequence
    is_good: bool = True

    @property
    def start(self) -> int:
        """Return the index of the answer's first token in the sequence."""
        return next(place for place, label in enumerate(self.sequence.labels) if label != IGNORED)

    @property
    def source(self) -> str:
        """Return the source that the row names; "" for none."""
        return self.sequence.source

    @property
    def targets(self) -> int:
        """Return the number of tokens that the loss counts."""
        return self.sequence.targets

    weight = 1.0

    @property
    def tokens(self) -> int:
        """Return the number of tokens of prompt and answer."""
        return len(self.sequence.ids)

    def after(self, other: Answer, max_length: int) -> TokenSequence:
        """Return the sequence of this answer after the prompt of `other`, cut to `max_length` tokens."""
        ids = [*other.sequence.ids[: other.start], *self.sequence.ids[self.start :]]
        labels = [*other.sequence.labels[: other.start], *self.sequence.labels[self.start :]]
        return TokenSequence(ids, labels).cut(max_length)


@dataclass(frozen=True)
class Pair:
    """A preferred and a rejected answer to one prompt."""

    chosen: TokenSequence
    rejected: TokenSequence

    weight = 1.0

    def cut(self, max_length: int) -> Pair:
        """Return the pair with both sequences cut to `max_length` tokens."""
        return Pair(self.chosen.cut(max_length), self.rejected.cut(max_length))

    @property
    def is_told_apart(self) -> bool:
        """Return True if both sides have tokens of their answer and the two sequences differ."""
        return bool(self.chosen.targets and self.rejected.targets) and self.chosen.ids != self.rejected.ids

    @property
    def source(self) -> str:
        """Return the source that the row names; "" for none."""
        return self.chosen.source

    @property
    def targets(self) -> int:
        """Return the number of tokens of both answers that the loss counts."""
        return self.chosen.targets + self.rejected.targets

    @property
    def tokens(self) -> int:
        """Return the number of tokens of both sequences."""
        return len(self.chosen.ids) + len(self.rejected.ids)


def checked(row: Any, path: Path, number: int) -> Row:
    """Return the row if it is a preference pair, or an answer that a boolean `label` marks as good or bad.

    Raises BadRow with the line `number` for any other row: one that is no object, in which a column is missing or
    empty, that mixes texts and lists of turns, or whose label is not a boolean.
    """
    if not isinstance(row, dict):
        raise BadRow(path, number, "this is not a JSON object.")
    is_judged = "label" in row
    columns = ("prompt", "completion") if is_judged else ("prompt", *SIDES)
    for column in columns:
        if not isinstance(row.get(column), str | list) or not row[column]:
            raise BadRow(path, number, f"{column} is missing, or neither a text nor a list of messages.")
        if type(row[column]) is not type(row["prompt"]):
            raise BadRow(path, number, f"{column} and prompt must both be texts or both be lists of messages.")
    if is_judged and not isinstance(row["label"], bool):
        raise BadRow(path, number, "label must be true or false.")
    return row


def rows_in(path: Path) -> list[Row]:
    """Return the preference rows of a file.

    Raises DataError if it is missing, cannot be read or has no rows, and BadRow for a row that `checked` refuses.
    """
    return read_rows(path, checked)


def pairs_of(
    rows: Iterable[Row], tokenizer: Any, max_length: int, most: int | None = None, cuts: Cuts | None = None
) -> list[Pair]:
    """Return the rows as tokenised pairs within the length, at most `most` of them; `cuts` counts what the length cuts.

    A pair is left out if a side has no answer within the length, or if both sides are the same within it. Raises
    DataError for rows that are not pairs or cannot be rendered.
    """
    counted = cuts or Cuts()

    def cut() -> Iterator[Pair]:
        for row in rows:
            if "chosen" not in row:
                raise DataError("the rows are marked good or bad (label), but the method learns from pairs.")
            whole = Pair(*(sequence_of(row, row[column], tokenizer) for column in SIDES))
            pair = whole.cut(max_length)
            note(counted, whole, pair)
            yield pair

    return list(islice((pair for pair in cut() if pair.is_told_apart), most))


def note(cuts: Cuts, whole: Pair, pair: Pair) -> None:
    """Add a pair, given before and after its cut, to the counts."""
    cuts.rows += 1
    cuts.cut += whole.tokens > pair.tokens
    cuts.left_out += not pair.is_told_apart
    cuts.without_end += pair.is_told_apart and whole.targets > pair.targets


def answers_of(
    rows: Iterable[Row], tokenizer: Any, max_length: int, most: int | None = None, cuts: Cuts | None = None
) -> list[Answer]:
    """Return answers marked good or bad as token sequences within the length, at most `most`; a pair gives two.

    An answer that begins beyond the length is left out; `cuts` counts what the length cuts. Raises DataError for a row
    that cannot be rendered.
    """
    counted = cuts or Cuts()

    def cut() -> Iterator[Answer]:
        for row in unpaired(rows):
            whole = sequence_of(row, row["completion"], tokenizer)
            counted.note(whole, max_length)
            yield Answer(whole.cut(max_length), row["label"])

    return list(islice((answer for answer in cut() if answer.targets), most))


def unpaired(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows marked good or bad unchanged, and a pair as a good and a bad row."""
    for row in rows:
        if "chosen" not in row:
            yield row
            continue
        rest = {name: value for name, value in row.items() if name not in SIDES}
        yield {**rest, "completion": row["chosen"], "label": True}
        yield {**rest, "completion": row["rejected"], "label": False}


def sequence_of(row: Row, answer: Any, tokenizer: Any) -> TokenSequence:
    """Return the uncut tokens of the row's prompt with the answer; only the answer's tokens have labels.

    Raises DataError if prompt and answer are not both texts or both turns, or cannot be rendered.
    """
    if not isinstance(row.get("prompt"), type(answer)):
        raise DataError("a row's prompt is not of the kind of its answers: upload the file again.")
    rest: Row = {name: row[name] for name in ("tools", "source") if name in row}
    if isinstance(answer, str):
        return tokenise({**rest, "prompt": row["prompt"], "completion": answer}, tokenizer, UNCUT)
    before = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in row["prompt"]]
    return tokenise({**rest, "messages": [*before, *answer]}, tokenizer, UNCUT)


def as_chat(rows: Iterable[Row]) -> list[Row]:
    """Return the rows with texts turned into turns: prompts into the user's, answers into the assistant's.

    A prompt in the form of Anthropic's HH-RLHF becomes all of its turns. Rows that hold turns already are unchanged.
    """
    return [spoken(row) if all(isinstance(row.get(name), str) for name in parts_of(row)) else row for row in rows]


def parts_of(row: Row) -> list[str]:
    """Return the column names of the prompt and of the row's answers.

    `prompt` comes first, then those of `completion`, `chosen` and `rejected` that the row has.
    """
    return ["prompt", *(name for name in ("completion", *SIDES) if name in row)]


def spoken(row: Row) -> Row:
    """Return a row of texts as a conversation of user and assistant."""
    answers = {name: [{"role": "assistant", "content": row[name].strip()}] for name in parts_of(row)[1:]}
    return {**row, "prompt": turns_in(row["prompt"]), **answers}


def turns_in(prompt: str) -> list[Row]:
    """Return the turns in a text of Anthropic's HH-RLHF form, or any other prompt as one turn of the user."""
    if not (prompt.startswith("\n\nHuman:") and prompt.rstrip().endswith("\n\nAssistant:")):
        return [{"role": "user", "content": prompt.strip()}]
    _, *parts = SPOKEN.split(prompt)
    turns = [{"role": ROLES[role], "content": text.strip()} for role, text in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1]
