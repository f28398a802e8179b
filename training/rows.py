"""Rows of a dataset file: reading, checking and the deterministic split. No database, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_ERRORS = 100
MAX_LINE_BYTES = 4 * 2**20
EVAL_PERCENT = 10

Row = dict[str, Any]


@dataclass(frozen=True)
class LineError:
    """A line that is no row: number (from 1), column, stable code, what to mend."""

    line: int
    column: str
    code: str
    message: str


@dataclass
class Checked:
    """What a file holds: its rows in the normal form and the lines that are none."""

    rows: list[Row] = field(default_factory=list)
    errors: list[LineError] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)


class BadLine(ValueError):
    def __init__(self, column: str, code: str, message: str) -> None:
        super().__init__(message)
        self.column, self.code = column, code


def check_file(path: Path, name: str) -> Checked:
    """Read JSONL (`.jsonl`, `.json`) or plain text (paragraphs between empty lines)."""
    if name.endswith((".jsonl", ".json")):
        return check_lines(path)
    paragraphs = path.read_text(errors="replace").split("\n\n")
    return Checked([{"text": text.strip()} for text in paragraphs if text.strip()], [], {"text"})


def check_lines(path: Path) -> Checked:
    checked = Checked()
    for number, raw in numbered_lines(path):
        try:
            row = parse_row(raw)
        except BadLine as error:
            if len(checked.errors) < MAX_ERRORS:
                checked.errors.append(LineError(number, error.column, error.code, str(error)))
        else:
            checked.rows.append(row)
            checked.columns |= set(row)
    return checked


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty, with their numbers; a line over the cap is cut, so that memory stays flat."""
    with path.open("rb") as stream:
        number = 0
        while raw := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            while len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
                rest = stream.readline(MAX_LINE_BYTES)
                if not rest or rest.endswith(b"\n"):
                    break
            if raw.strip():
                yield number, raw


def parse_row(raw: bytes) -> Row:
    """One JSON object in one of the three forms. Raises BadLine."""
    if len(raw) > MAX_LINE_BYTES:
        raise BadLine("", "line_too_long", "The line is over 4 MB: split it.")
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadLine("", "not_json", f"The line is no JSON: {error}.") from None
    if not isinstance(row, dict):
        raise BadLine("", "not_an_object", "The line is no JSON object.")
    return normal_form(row)


def normal_form(row: dict[str, Any]) -> Row:
    """Keep the fields that training uses: prompt and completion, messages, or text."""
    document = {"document": text_in(row, "document")} if "document" in row else {}
    if "prompt" in row or "completion" in row:
        return {column: text_in(row, column) for column in ("prompt", "completion")} | document
    if "messages" in row:
        return {"messages": messages_in(row)} | document
    if "text" in row:
        return {"text": text_in(row, "text")} | document
    raise BadLine("", "no_form", "The row has neither prompt and completion, nor messages, nor text.")


def text_in(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise BadLine(column, "empty", f"{column} is missing, empty or no text.")
    return value


def messages_in(row: dict[str, Any]) -> list[dict[str, str]]:
    messages = row["messages"]
    if not isinstance(messages, list) or not messages:
        raise BadLine("messages", "empty", "messages is no list of {role, content}.")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise BadLine("messages", "bad_role", "A message's role is system, user or assistant.")
        text_in(message, "content")
    if messages[-1]["role"] != "assistant":
        raise BadLine("messages", "no_answer", "The last message must be the assistant's.")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def is_held_out(row: Row) -> bool:
    """About EVAL_PERCENT of the rows, by a hash of the document they name, else of the prompt: the same row is
    always on the same side, and rows of one document are never on both.
    """
    key = row.get("document") or row.get("prompt") or row.get("text") or json.dumps(row["messages"][:1], sort_keys=True)
    return hashlib.sha256(key.encode()).digest()[0] * 100 // 256 < EVAL_PERCENT


def split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(train, eval)."""
    return [row for row in rows if not is_held_out(row)], [row for row in rows if is_held_out(row)]


def write_rows(path: Path, rows: list[Row]) -> None:
    with path.open("w") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows)
