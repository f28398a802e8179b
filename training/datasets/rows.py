"""Validation of dataset rows, their normal form, and the deterministic split. No database, no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

MAX_ROW_BYTES = 4 * 2**20
EVAL_PERCENT = 10
FORMS = (("prompt", "completion"), ("messages",), ("text",))
COLUMNS = ("prompt", "completion", "messages", "text", "document")
# ShareGPT's words for a message.
SHARED_ROLES = {"human": "user", "gpt": "assistant"}

Row = dict[str, Any]


@dataclass(frozen=True)
class LineError:
    """An invalid line: its number (from 1), column, stable error code, and how to correct it."""

    line: int
    column: str
    code: str
    message: str


class BadLine(ValueError):
    """A line that cannot be a row, with the column and a stable code."""

    def __init__(self, column: str, code: str, message: str) -> None:
        super().__init__(message)
        self.column, self.code = column, code


def parse_row(raw: bytes) -> Row:
    """Parse one JSON object in one of the three forms into its normal form. Raises BadLine."""
    return normal_form(json_object(raw))


def json_object(raw: bytes) -> dict[str, Any]:
    """Parse a line of at most MAX_ROW_BYTES as a JSON object. Raises BadLine."""
    if len(raw) > MAX_ROW_BYTES:
        raise too_long()
    try:
        row = json.loads(raw)
    except UnicodeDecodeError:
        raise not_utf8() from None
    except (ValueError, RecursionError) as error:
        raise BadLine("", "not_json", f"The line is no JSON: {error}.") from None
    if not isinstance(row, dict):
        raise BadLine("", "not_an_object", "The line is no JSON object.")
    return row


def too_long() -> BadLine:
    """Return the error of a line over the limit."""
    return BadLine("", "line_too_long", "The line is over 4 MB: split it.")


def not_utf8() -> BadLine:
    """Return the error of a line in another encoding."""
    return BadLine("", "not_utf8", "The line is no UTF-8: save the file in UTF-8.")


def renamed(row: dict[str, Any], mapping: dict[str, str]) -> dict[str, Any]:
    """Rename the columns by `mapping` (our name -> the file's). Raises BadLine for a missing column."""
    for column in mapping.values():
        if column not in row:
            raise BadLine(column, "missing_column", f"There is no column {column!r}, which the mapping names.")
    return {name: row[column] for name, column in mapping.items()} if mapping else row


def normal_form(row: dict[str, Any]) -> Row:
    """Keep the fields that training uses: prompt and completion, messages, or text. Raises BadLine."""
    row = {column: row[column] for column in COLUMNS if row.get(column) is not None}
    if isinstance(row.get("document"), int):
        row["document"] = str(row["document"])
    document = {"document": text_in(row, "document")} if "document" in row else {}
    for form in FORMS:
        if set(form) & set(row):
            return {column: value_in(row, column) for column in form} | document
    raise BadLine("", "no_form", "The row has neither prompt and completion, nor messages, nor text.")


def value_in(row: dict[str, Any], column: str) -> Any:
    """Return the column's value in its normal form. Raises BadLine."""
    return messages_in(row) if column == "messages" else text_in(row, column)


def text_in(row: dict[str, Any], column: str) -> str:
    """Return the column's text. Raises BadLine if it is missing, empty, broken or too long."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise BadLine(column, "empty", f"{column} is missing, empty or no text.")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadLine(column, "not_utf8", f"{column} holds half a character (a lone surrogate).") from None
    if size > MAX_ROW_BYTES:
        raise BadLine(column, "line_too_long", f"{column} is over 4 MB: split the row.")
    return value


def messages_in(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return the row's messages. Raises BadLine unless they end with the assistant's."""
    messages = row["messages"]
    if isinstance(messages, str):
        messages = messages_from(messages)
    if not isinstance(messages, list) or not messages:
        raise BadLine("messages", "empty", "messages is no list of {role, content}.")
    turns = [turn_of(message) for message in messages]
    if turns[-1]["role"] != "assistant":
        raise BadLine("messages", "no_answer", "The last message must be the assistant's.")
    return turns


def messages_from(text: str) -> Any:
    """Parse the `messages` cell of a CSV file as JSON. Raises BadLine."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadLine("messages", "not_json", "messages is no JSON list of {role, content}.") from None


def turn_of(message: Any) -> dict[str, str]:
    """Normalise a message from {role, content} or ShareGPT's {from, value}. Raises BadLine."""
    if isinstance(message, dict) and "from" in message:
        message = {"role": SHARED_ROLES.get(str(message["from"]), message["from"]), "content": message.get("value")}
    if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
        raise BadLine("messages", "bad_role", "A message's role is system, user or assistant.")
    return {"role": message["role"], "content": text_in(message, "content")}


def is_held_out(row: Row) -> bool:
    """Return True for about EVAL_PERCENT of the rows, by a hash of the row's document, else of its prompt.

    The same row is always in the same split, and rows of one document are never in both.
    """
    key = row.get("document") or row.get("prompt") or row.get("text") or json.dumps(row["messages"][:1], sort_keys=True)
    return hashlib.sha256(key.encode()).digest()[0] * 100 // 256 < EVAL_PERCENT


def line_of(row: Row) -> str:
    """Return the row as its stored JSON line: the same bytes for the same row."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n"


def content_hash(row: Row) -> int:
    """Return a 64-bit hash of the row's text that ignores case and white space, so that copies have the same hash."""
    words = json.dumps({name: row[name] for name in row if name != "document"}, ensure_ascii=False, sort_keys=True)
    plain = " ".join(words.casefold().replace("\\n", " ").replace("\\t", " ").split())
    return int.from_bytes(hashlib.blake2b(plain.encode(), digest_size=8).digest())
