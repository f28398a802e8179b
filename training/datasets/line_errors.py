"""Errors of single lines, and the parsing and checks of single values. No database, no torch."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

# Categories of characters that show nothing: controls, formats such as a space without width, and separators.
UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")
PYTHON = re.compile(r"\s*[\[{(]+\s*'")
MAX_ROW_BYTES = 4 * 2**20
KINDS = {int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object", bytes: "bytes"}
# What to do with a value that holds several.
TO_TEXT: dict[type[Any], str] = {list: "write a row for each of its texts, or one text", dict: "write its text alone"}


@dataclass(frozen=True)
class LineError:
    """An invalid line: its number (from 1), column, stable error code, and how to correct it."""

    line: int
    column: str
    code: str
    message: str


class BadLine(ValueError):
    """Raised for a record that cannot be used; `column` is the column at fault ("" for none), `code` a stable code."""

    def __init__(self, column: str, code: str, message: str) -> None:
        super().__init__(storable(message))
        self.column, self.code = storable(column), code


def storable(text: str) -> str:
    """Return the text with "?" for NULs and lone surrogates, which Postgres and UTF-8 cannot store."""
    return text.encode(errors="replace").decode().replace("\0", "?")


def json_object(raw: bytes) -> dict[str, Any]:
    """Parse a line as a JSON object.

    Raises BadLine if it is not one, is not UTF-8, is over MAX_ROW_BYTES, or has a name twice.
    """
    if len(raw) > MAX_ROW_BYTES:
        raise too_long()
    try:
        row = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=without_twins)
    except UnicodeDecodeError:
        raise not_utf8() from None
    except BadLine:
        raise
    except (ValueError, RecursionError) as error:
        raise BadLine("", "not_json", f"The line is not JSON: {fault_in(error)}.{advice(error)}") from None
    if not isinstance(row, dict):
        hint = ' Write a conversation as {"messages": [...]}.' if isinstance(row, list) else ""
        hint = ' Write a text as {"text": ...}.' if isinstance(row, str) else hint
        raise BadLine("", "not_an_object", f"The line is not a JSON object.{hint}")
    return row


def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs. Raises BadLine for a name that occurs twice, since one value would be lost."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadLine(twice, "name_twice", f"An object has {twice!r} twice: keep one.")
    return row


def advice(error: Exception) -> str:
    """Return a hint on a line that is not JSON, with a space before it; "" if the error suggests none."""
    return " Write one object a line, with no comma behind it." if "Extra data" in str(error) else ""


def fault_in(error: Exception) -> str:
    """Return what Python's JSON reader met, in words about the file alone."""
    too_many_digits = "int_max_str_digits" in str(error)
    return "a number has over 4,300 digits; write it in quotes" if too_many_digits else str(error)


def too_long() -> BadLine:
    """Return, without raising it, the error of a line over the size limit."""
    return BadLine("", "line_too_long", "The line is over 4 MB: split it.")


def not_utf8() -> BadLine:
    """Return, without raising it, the error of bytes that are not UTF-8."""
    message = "The line is not UTF-8: choose the file's encoding (as cp1252, Windows Western), or save it in UTF-8."
    return BadLine("", "not_utf8", message)


def text_in(row: dict[str, Any], column: str) -> str:
    """Return the column's text.

    Raises BadLine if it is missing, blank, not text, over 4 MB, or holds a lone surrogate.
    """
    value = row.get(column)
    if value is not None and not isinstance(value, str):
        kind = KINDS.get(type(value), type(value).__name__)
        fix = TO_TEXT.get(type(value), "write text in quotes")
        raise BadLine(column, "not_text", f"{column} is {kind}, not text: {fix}.")
    if value is None or not is_visible(value):
        raise BadLine(column, "empty", f"{column} is missing, empty or not text.")
    return sized(value, column)


def is_visible(text: str) -> bool:
    """Return True if the text has a character other than white space and marks without a width."""
    return any(unicodedata.category(letter) not in UNSEEN for letter in text.strip())


def sized(value: str, column: str) -> str:
    """Return the text. Raises BadLine if it is over 4 MB or holds a lone surrogate."""
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadLine(
            column, "not_utf8", f"{column} contains half a character (a lone surrogate): write the whole character."
        ) from None
    if size > MAX_ROW_BYTES:
        raise BadLine(column, "line_too_long", f"{column} is over 4 MB: split the row.")
    return value


def number_text(value: Any) -> Any:
    """Return a whole number as text, as needed for a column of case numbers; other values unchanged.

    A column of numbers with gaps has floats: 12.0 becomes "12".
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def parsed_json(value: Any, column: str) -> Any:
    """Return the value of a cell that contains JSON as text; values that are not text unchanged.

    Raises BadLine for text that is not JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        hint = " It is Python's way to write a list: write it with json.dumps." if PYTHON.match(value) else ""
        raise BadLine(column, "not_json", f"{column} is text, but not JSON.{hint}") from None


def without_nulls(value: Any) -> Any:
    """Return the value without null fields at any depth, since a Parquet struct has every field of every row."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
