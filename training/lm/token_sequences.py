"""Rows of a file (prompt and completion, messages, or text) as labelled token sequences, the same for all programs."""

from __future__ import annotations

import json
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from training.lm.chat import Conversation, rendered
from training.lm.chat_template import ChatError, is_end

IGNORED = -100
# What the loss counts: every answer, only the last one of a conversation, or prompts as well.
ANSWERS, LAST_ANSWER, WITH_PROMPT = LOSSES = ("answers", "last_answer", "with_prompt")
# Longer than any row.
UNCUT = 2**31

Row = dict[str, Any]
Check = Callable[[Any, Path, int], Row]


class DataError(ValueError):
    """Raised when a data file cannot be used; the message says why."""


class BadRow(DataError):
    """Raised when a line of the file is not a valid row; `line` is its number from 1."""

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(f"{path.name}, line {line}: {message}")
        self.line = line


@dataclass(frozen=True)
class TokenSequence:
    """A tokenised row: `ids` and as many `labels`, which are the token where the loss counts it and IGNORED elsewhere.

    `weights` are those of the labels, None if each is 1. `source` is the text of the row's column `source`, "" without
    it.
    """

    ids: list[int]
    labels: list[int]
    weights: list[float] | None = None
    source: str = ""

    def cut(self, max_length: int) -> TokenSequence:
        """Return the sequence cut to its first `max_length` tokens."""
        weights = self.weights and self.weights[:max_length]
        return replace(self, ids=self.ids[:max_length], labels=self.labels[:max_length], weights=weights)

    @property
    def weight(self) -> float:
        """Return the sum of the weights of the tokens that the loss counts."""
        return sum(self.weights[1:]) if self.weights else self.targets

    @property
    def targets(self) -> int:
        """Return the number of tokens that the loss counts; the first token of a sequence is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def read_rows(path: Path, check: Check | None = None) -> list[Row]:
    """Read all rows of a `.jsonl`, `.json` (one object per line), `.parquet` or text file.

    A row of a text file is a paragraph. `check(row, path, line)` returns a row of the form that the caller reads, or
    raises BadRow; without it a row must be of one of the three forms of `checked`. Raises DataError for a file that is
    missing, cannot be read or has no rows.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    readers = {".jsonl": read_jsonl, ".json": read_jsonl, ".parquet": read_parquet}
    rows = list(readers.get(path.suffix, read_text)(path, check or checked))
    if not rows:
        raise DataError(f"{path.name} has no rows.")
    return rows


def read_jsonl(path: Path, check: Check) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines, as `check(row, path, line)` returns them; blank lines are skipped.

    Raises BadRow for a line that is not JSON or that `check` refuses.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield check(parsed(line, path, number), path, number)


def parsed(line: bytes, path: Path, number: int) -> Any:
    """Parse a line as JSON. Raises BadRow with the line `number` if it is not valid JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow(path, number, f"this is not valid JSON: {error}.") from None


def read_parquet(path: Path, check: Check) -> Iterator[Row]:
    """Yield the checked rows of a Parquet file; the number of a row counts from 1.

    Raises DataError if it is no Parquet file, and BadRow for a row that `check` refuses.
    """
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path.name} is not a Parquet file: {error}.") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        yield check(row, path, number)


def read_text(path: Path, check: Check) -> Iterator[Row]:
    """Return an iterator of the checked paragraphs of a text file; the number of a paragraph counts from 1.

    Raises DataError if the file is not UTF-8, and BadRow for a paragraph that `check` refuses.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}).") from None
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    return (check({"text": paragraph}, path, number) for number, paragraph in enumerate(paragraphs, start=1))


def checked(row: Any, path: Path, number: int) -> Row:
    """Return the row if it has messages, a prompt and a completion, or a text.

    Raises BadRow with the line `number` for any other row.
    """
    if not isinstance(row, dict):
        raise BadRow(path, number, "this is not a JSON object.")
    if "messages" in row:
        if not is_conversation(row["messages"]):
            raise BadRow(path, number, "messages must be a list of {role, content} with an answer from the assistant.")
        return row
    columns = ("prompt", "completion") if "prompt" in row or "completion" in row else ("text",)
    for column in columns:
        if not isinstance(row.get(column), str) or not row[column]:
            raise BadRow(path, number, f"{column} is missing, empty or not a string.")
    return row


def is_conversation(messages: Any) -> bool:
    """Return True for a list of turns, each with a role and text, perhaps empty, one of them the assistant's."""
    return (
        isinstance(messages, list)
        and all(isinstance(turn, dict) for turn in messages)
        and all(isinstance(turn.get("role"), str) and isinstance(turn.get("content") or "", str) for turn in messages)
        and any(turn["role"] == "assistant" for turn in messages)
    )


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Return `count` rows without repetition (all if there are fewer) in an order fixed by the seed."""
    return random.Random(seed).sample(list(rows), min(count, len(rows)))  # noqa: S311 - a sample, no secret


@dataclass
class Cuts:
    """The effect of a maximum length on the `rows` that were tokenised.

    `cut` rows are longer, `left_out` rows have nothing within it that the loss counts, and `without_end` rows lose the
    end of an answer.
    """

    rows: int = 0
    cut: int = 0
    left_out: int = 0
    without_end: int = 0

    def note(self, whole: TokenSequence, max_length: int) -> None:
        """Add a row, given before its cut, to the counts."""
        cut = whole.cut(max_length)
        self.rows += 1
        self.cut += len(whole.ids) > max_length
        self.left_out += not cut.targets
        self.without_end += bool(cut.targets) and whole.targets > cut.targets


def tokenised(
    rows: Iterable[Row],
    tokenizer: Any,
    max_length: int,
    most: int | None = None,
    cuts: Cuts | None = None,
    loss: str = ANSWERS,
) -> list[TokenSequence]:
    """Return rows as sequences of at most `max_length` tokens, at most `most` of them; cut rows are counted in `cuts`.

    `loss` is one of LOSSES. Rows in which no token counts in the loss are left out: their completion begins beyond the
    length, or has no weight. Raises DataError for a conversation that cannot be rendered.
    """
    counted = cuts or Cuts()

    def cut() -> Iterator[TokenSequence]:
        for row in rows:
            whole = tokenise(row, tokenizer, UNCUT, loss)
            counted.note(whole, max_length)
            yield whole.cut(max_length)

    return list(islice((sequence for sequence in cut() if sequence.targets), most))


def tokenise(row: Row, tokenizer: Any, max_length: int, loss: str = ANSWERS) -> TokenSequence:
    """Return the tokens of a row, at most `max_length`; completions and texts end with the end token.

    `loss`, one of LOSSES, decides which tokens have labels, not which tokens there are. A row or an answer of weight 0
    is read but never counted. Raises DataError for a conversation that cannot be rendered.
    """
    whole = (conversation if "messages" in row else plain)(row, tokenizer, loss)
    return replace(whole.cut(max_length), source=row.get("source", ""))


def plain(row: Row, tokenizer: Any, loss: str) -> TokenSequence:
    """Return the tokens of a prompt and its completion, or of a text, with the end token and labels.

    Only the completion counts, with WITH_PROMPT the prompt, too; of a text all tokens count.
    """
    prompt = tokenizer(row["prompt"])["input_ids"] if "prompt" in row else []
    answer = tokenizer(row["completion"] if prompt else row["text"], add_special_tokens=not prompt)["input_ids"]
    ids = without_second_start([*prompt, *answer], tokenizer)
    end = ending(ids, tokenizer)
    ids += end
    counted = len(answer) + len(end) if prompt and loss != WITH_PROMPT else len(ids)
    return weighted(ids, [0.0] * (len(ids) - counted) + [float(row.get("weight", 1))] * counted)


def without_second_start(ids: list[int], tokenizer: Any) -> list[int]:
    """Return the tokens without a second BOS, which a rendered text may bring beside the tokenizer's own."""
    start = tokenizer.bos_token_id
    return ids[1:] if start is not None and ids[:2] == [start, start] else ids


def ending(ids: list[int], tokenizer: Any) -> list[int]:
    """Return the end token as a list; empty if there is none, or if the tokens already end with an end of turn."""
    end = tokenizer.eos_token_id
    return [] if end is None or (ids and is_end(ids[-1], tokenizer)) else [end]


def weighted(ids: list[int], weights: list[float]) -> TokenSequence:
    """Return a sequence in which tokens with a weight above 0 are labels.

    The weights are kept only if one of them is neither 0 nor 1.
    """
    labels = [token if weight else IGNORED for token, weight in zip(ids, weights, strict=True)]
    return TokenSequence(ids, labels, None if set(weights) <= {0.0, 1.0} else weights)


def conversation(row: Row, tokenizer: Any, loss: str) -> TokenSequence:
    """Return the tokens of a conversation in the chat template, with labels where the loss counts.

    Raises DataError if the template cannot render it, or leaves something out.
    """
    share = float(row.get("weight", 1))
    messages = without_earlier(row["messages"]) if loss == LAST_ANSWER else row["messages"]
    try:
        talk = rendered(messages, row.get("tools"), tokenizer, share)
    except ChatError as error:
        raise DataError(str(error)) from None
    ids, places = tokens_of(talk, tokenizer)
    weights = [share if loss == WITH_PROMPT else 0.0] * len(ids)
    for span in talk.spans:
        for token, (start, end) in enumerate(places):
            if start < span.end and max(end, start + 1) > span.start:
                weights[token] = span.weight
    if talk.open_end is not None and tokenizer.eos_token_id is not None:
        ids, weights = [*ids, tokenizer.eos_token_id], [*weights, talk.open_end]
    return weighted(ids, weights)


def without_earlier(messages: Sequence[Row]) -> list[Row]:
    """Return the messages with the weight 0 for every answer but the last."""
    last = max(place for place, turn in enumerate(messages) if turn["role"] == "assistant")
    return [
        {**turn, "weight": 0} if turn["role"] == "assistant" and place < last else turn
        for place, turn in enumerate(messages)
    ]


def tokens_of(talk: Conversation, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the tokens of the rendered text, and the range of characters of each.

    No token joins counted characters with others, because an engine also tokenises the text before an answer by itself.
    """
    whole = encoded(talk.text, tokenizer, 0)
    borders = sorted({place for span in talk.spans for place in (span.start, span.end)})
    if whole and not any(joins(talk.text, start, end, borders) for start, end in whole[1]):
        return whole
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    for start, end in zip([0, *borders], [*borders, len(talk.text)], strict=True):
        piece = talk.text[start:end]
        known = encoded(piece, tokenizer, start)
        if known is None:
            plain_ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
            known = plain_ids, [(start, end)] * len(plain_ids)
        ids, places = ids + known[0], places + known[1]
    return ids, places


def encoded(text: str, tokenizer: Any, at: int) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Return the tokens of a text and their ranges of characters, counted from `at`.

    None if the tokenizer does not report ranges.
    """
    if not tokenizer.is_fast:
        return None
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoding["input_ids"]), [(start + at, end + at) for start, end in encoding["offset_mapping"]]


def joins(text: str, start: int, end: int, borders: list[int]) -> bool:
    """Return True if a border lies within the token at [start, end), with more than white space on both sides of it."""
    return any(
        start < border < end and text[start:border].strip() and text[border:end].strip()
        for border in borders[bisect_right(borders, start) : bisect_right(borders, end)]
    )


def padded(sequences: Sequence[TokenSequence], pad: int) -> tuple[list[list[int]], list[list[int]], list[list[int]]]:
    """Return (ids, attention mask, labels), each padded on the right to the longest sequence."""
    width = max(len(sequence.ids) for sequence in sequences)
    ids, mask, labels = [], [], []
    for sequence in sequences:
        gap = width - len(sequence.ids)
        ids.append(sequence.ids + [pad] * gap)
        mask.append([1] * len(sequence.ids) + [0] * gap)
        labels.append(sequence.labels + [IGNORED] * gap)
    return ids, mask, labels


def as_chat(rows: Iterable[Row]) -> list[Row]:
    """Return prompts and completions as conversations of a user's and an assistant's turn; other rows unchanged."""
    return [talk_of(row) if "completion" in row else row for row in rows]


def talk_of(row: Row) -> Row:
    """Return a row of prompt and completion as a conversation of two turns, without surrounding white space.

    The row's other fields are kept.
    """
    turns = [
        {"role": "user", "content": row["prompt"].strip()},
        {"role": "assistant", "content": row["completion"].strip()},
    ]
    rest = {name: value for name, value in row.items() if name not in ("prompt", "completion")}
    return {**rest, "messages": turns}


def is_chat(path: Path) -> bool:
    """Return True if the first row of a JSON file has messages, or a prompt that is a list of turns.

    False for other files and an empty one. Raises BadRow if the first row is not valid JSON.
    """
    if path.suffix not in (".jsonl", ".json"):
        return False
    row = next(iter(read_jsonl(path, lambda row, *_: row)), {})
    return "messages" in row or isinstance(row.get("prompt"), list)
