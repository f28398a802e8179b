"""Rows of a file (prompt and completion, messages, or text) as labelled token sequences, the same for all programs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IGNORED = -100

Row = dict[str, Any]


class DataError(ValueError):
    """The data file cannot be used."""


class BadRow(DataError):
    """Line `line` (from 1) of the file is not a valid row."""

    def __init__(self, path: Path, line: int, message: str) -> None:
        super().__init__(f"{path.name}, line {line}: {message}")
        self.line = line


@dataclass(frozen=True)
class TokenSequence:
    """A tokenised row: `ids` and as many `labels`, the token where the loss counts and IGNORED elsewhere."""

    ids: list[int]
    labels: list[int]

    @property
    def targets(self) -> int:
        """Count the tokens that the loss counts; the first token of a sequence is never predicted."""
        return sum(label != IGNORED for label in self.labels[1:])


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a `.jsonl`, `.json` (an object a line), `.parquet` or text file. Raises DataError.

    A row of a text file is a paragraph.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist.")
    readers = {".jsonl": read_jsonl, ".json": read_jsonl, ".parquet": read_parquet}
    rows = list(readers.get(path.suffix, read_text)(path))
    if not rows:
        raise DataError(f"{path.name} has no rows.")
    return rows


def read_jsonl(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines. Raises BadRow."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield checked(parsed(line, path, number), path, number)


def parsed(line: bytes, path: Path, number: int) -> Any:
    """Parse a line as JSON. Raises BadRow."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow(path, number, f"this is not valid JSON: {error}.") from None


def read_parquet(path: Path) -> Iterator[Row]:
    """Yield the rows of a Parquet file. Raises DataError and BadRow."""
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path.name} is not a Parquet file: {error}.") from None
    for number, row in enumerate(table.to_pylist(), start=1):
        yield checked(row, path, number)


def read_text(path: Path) -> Iterator[Row]:
    """Yield the paragraphs of a text file as rows. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}).") from None
    return ({"text": paragraph.strip()} for paragraph in text.split("\n\n") if paragraph.strip())


def checked(row: Any, path: Path, number: int) -> Row:
    """Return the row if it has one of the three forms. Raises BadRow."""
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
    """Return True for a list of turns that holds an answer of the assistant."""
    return (
        isinstance(messages, list)
        and all(isinstance(turn, dict) for turn in messages)
        and all(isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str) for turn in messages)
        and any(turn["role"] == "assistant" for turn in messages)
    )


def sample(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """Return `count` rows without repetition (all if there are fewer) in an order fixed by the seed."""
    return random.Random(seed).sample(list(rows), min(count, len(rows)))  # noqa: S311 - a sample, no secret


def tokenised(rows: Iterable[Row], tokenizer: Any, max_length: int) -> list[TokenSequence]:
    """Tokenise rows to at most `max_length` tokens; rows whose completion lies wholly beyond it are left out."""
    sequences = (tokenise(row, tokenizer, max_length) for row in rows)
    return [sequence for sequence in sequences if sequence.targets]


def tokenise(row: Row, tokenizer: Any, max_length: int) -> TokenSequence:
    """Tokenise a row; completions and texts end with EOS. Raises DataError for messages without a chat template."""
    if "messages" in row:
        ids, labels = conversation(row["messages"], tokenizer)
    else:
        prompt = tokenizer(row["prompt"])["input_ids"] if "prompt" in row else []
        ending = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        answer = tokenizer(row["completion"] if prompt else row["text"], add_special_tokens=not prompt)["input_ids"]
        ids = prompt + answer + ending
        labels = [IGNORED] * len(prompt) + answer + ending
    return TokenSequence(ids[:max_length], labels[:max_length])


def conversation(messages: list[dict[str, str]], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Apply the chat template and label the assistant's turns. Raises DataError without a chat template."""
    if not tokenizer.chat_template:
        raise DataError("The rows hold messages, but the model's tokenizer has no chat template: use prompts instead.")
    ids = templated(messages, tokenizer)
    labels = [IGNORED] * len(ids)
    for turn, message in enumerate(messages):
        if message["role"] == "assistant":
            start = len(templated(messages[:turn], tokenizer, add_generation_prompt=True)) if turn else 0
            end = len(templated(messages[: turn + 1], tokenizer))
            labels[start:end] = ids[start:end]
    return ids, labels


def templated(messages: list[dict[str, str]], tokenizer: Any, **options: Any) -> list[int]:
    """Return the tokens of the conversation in the model's chat template."""
    ids: list[int] = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)["input_ids"]
    return ids


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
