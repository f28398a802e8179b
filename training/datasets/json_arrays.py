"""Rows in one JSON document, an array or an object that holds arrays, read element by element in constant memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from training.datasets.line_errors import MAX_ROW_BYTES, BadLine, fault_in, not_utf8, too_long, without_twins
from training.datasets.rows import COLUMNS, HELD_OUT_WORDS, TRAIN_WORDS

CHUNK = 2**16
# Characters of the longest escape or word of JSON.
LONGEST_TOKEN = 12
HOLDERS = (
    "data",
    "rows",
    "examples",
    "items",
    "records",
    "instances",
    "samples",
    "dataset",
    *TRAIN_WORDS,
    *HELD_OUT_WORDS,
)
SPACE = re.compile(r"\s*")
NAMES = "|".join(HOLDERS).encode()
SCALAR = rb'("[^"\\]*"|[\d.eE+-]+|true|false|null)'
# An object whose rows follow a holder's name, perhaps after scalars: {"version": 1, "data": [...
OPENING = re.compile(rb'\{\s*("[^"\\]*"\s*:\s*' + SCALAR + rb'\s*,\s*)*"(' + NAMES + rb')"\s*:\s*\[')
# A brace alone on its line, and the first name on the next.
LONE_BRACE = re.compile(rb'\{[ \t\r]*\n\s*"')
DECODER = json.JSONDecoder(object_pairs_hook=without_twins)
Record = tuple[int, dict[str, Any] | BadLine]


def is_array(start: bytes) -> bool:
    """Return True if a JSON file that begins with `start` is one document that contains rows, not one row per line."""
    plain = start.lstrip()
    line, _, rest = plain.partition(b"\n")
    try:
        first = json.loads(line)
    except (ValueError, RecursionError):
        return plain.startswith(b"[") or OPENING.match(plain) is not None
    if rest.strip():
        return False
    return isinstance(first, list) or (isinstance(first, dict) and any(is_rows(first.get(name)) for name in HOLDERS))


def is_rows(value: Any) -> bool:
    """Return True for an array whose first element is an object."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


class Text:
    """The characters of a UTF-8 stream from the current position on; characters that were taken are not kept."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.decoder = stream, codecs.getincrementaldecoder("utf-8")()
        self.buffer, self.at, self.ended = "", 0, False

    def more(self) -> bool:
        """Read another piece, at least as large as what is waiting; return False at the end.

        Raises UnicodeDecodeError for bytes that are not UTF-8.
        """
        if self.ended:
            return False
        self.buffer, self.at = self.buffer[self.at :], 0
        raw = self.stream.read(max(CHUNK, len(self.buffer)))
        self.ended = not raw
        self.buffer += self.decoder.decode(raw, final=self.ended)
        return not self.ended

    def peek(self) -> str:
        """Return the next character that is not white space, without taking it; "" at the end."""
        while True:
            matched = SPACE.match(self.buffer, self.at)
            self.at = matched.end() if matched else self.at
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.more():
                return ""

    def take(self, expected: str) -> bool:
        """Take the next character that is not white space if it is `expected`; return True if it was taken."""
        taken = self.peek() == expected
        self.at += taken
        return taken

    def is_cut(self, error: Exception) -> bool:
        """Return True if the error may only mean that the value is not read to its end yet."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated") or error.pos >= len(self.buffer) - LONGEST_TOKEN

    def value(self) -> Any:
        """Take and return the next JSON value.

        Raises BadLine if there is none, or it is over the size limit of a row.
        """
        self.peek()
        while True:
            try:
                value, end = DECODER.raw_decode(self.buffer, self.at)
            except BadLine:
                raise
            except (ValueError, RecursionError) as error:
                if len(self.buffer) - self.at > MAX_ROW_BYTES:
                    raise too_long() from None
                if not self.is_cut(error) or not self.more():
                    raise BadLine(
                        "", "not_json", f"The document is not JSON from here on: {fault_in(error)}."
                    ) from None
                continue
            if end == len(self.buffer) and not self.ended and not isinstance(value, dict | list | str):
                self.more()
                continue
            self.at = end
            return value


def is_sequence(start: bytes) -> bool:
    """Return True if a JSON file that begins with `start` has objects that span several lines, one after the other."""
    plain = start.lstrip()
    return LONE_BRACE.match(plain) is not None and OPENING.match(plain) is None


def rows_in(stream: BinaryIO, read: Callable[[Text], Iterator[tuple[str, Any]]] | None = None) -> Iterator[Record]:
    """Yield (number from 1, object) of the rows in the document.

    `read` takes the rows from the text; by default they are those of the document's arrays. The name of the split that
    an array is for is added to its objects unless they have one. An element that is not an object becomes a BadLine in
    its place. The last item is a BadLine if the document is not JSON to its end.
    """
    text, number = Text(stream), 0
    try:
        for split, item in (read or items)(text):
            number += 1
            if not isinstance(item, dict):
                message = "The element of the array is not a JSON object."
                yield number, BadLine("", "not_an_object", f"{message}{as_object(item)}")
            else:
                yield number, {**item, **({"split": split} if split and item.get("split") is None else {})}
    except BadLine as error:
        yield number + 1, error
    except UnicodeDecodeError:
        yield number + 1, not_utf8()


def as_object(item: Any) -> str:
    """Return a hint on how to write an element that is not an object, with a space before it; "" if there is none."""
    if isinstance(item, str):
        return ' Write a text as {"text": ...}.'
    if is_rows(item):
        return ' Write a conversation as {"messages": [...]}.'
    return ""


def items(text: Text) -> Iterator[tuple[str, Any]]:
    """Yield (split, element) of the array at the top, or of the arrays that an object has under a known name.

    The split is "" if no name says it. Raises BadLine for a document that is cut off or goes on after its end.
    """
    if text.take("["):
        yield from (("", item) for item in elements(text))
    elif text.take("{"):
        yield from held_rows(text)
    if text.peek():
        raise BadLine("", "not_json", "There is more text after the end of the JSON document: remove it.")


def objects(text: Text) -> Iterator[tuple[str, Any]]:
    """Yield (split, object) of objects that follow one another; an object that contains rows yields these instead.

    The split is "" for an object of its own. Other values beside the rows are added to the last of them, as `held_rows`
    does. Raises BadLine for anything else than objects, and as `beside` does.
    """
    while text.peek() == "{":
        record = text.value()
        holders = [name for name in HOLDERS if is_rows(record.get(name))]
        rest = beside({name: record[name] for name in record if name not in holders}) if holders else {}
        rows = [(split_of(name), item) for name in holders for item in record[name]] or [("", record)]
        yield from rows[:-1]
        yield with_notes(rows[-1], rest)
    if text.peek():
        raise BadLine("", "not_json", "What follows is not a JSON object.")


def held_rows(text: Text) -> Iterator[tuple[str, Any]]:
    """Yield (split, element) of each array of rows in an object whose opening brace was taken.

    The name of an array says that it contains rows, and of which split. Other values are added to the last row by names
    that say so, and are told as not used. Raises BadLine for an object that does not end, and as `beside` does.
    """
    last: tuple[str, Any] | None = None
    rest: dict[str, Any] = {}
    while text.peek() == '"':
        name = text.value()
        if not text.take(":"):
            break
        if name in HOLDERS and text.take("["):
            for item in elements(text):
                if last is not None:
                    yield last
                last = split_of(name), item
        else:
            rest |= beside({name: text.value()})
        text.take(",")
    if last is not None:
        yield with_notes(last, rest)
    if not text.take("}"):
        raise BadLine("", "not_json", "The object does not end: the file is incomplete.")


def split_of(name: str) -> str:
    """Return the split that the name of an array says; "" if it says none."""
    return name if name in (*TRAIN_WORDS, *HELD_OUT_WORDS) else ""


def beside(values: dict[str, Any]) -> dict[str, Any]:
    """Return what stands beside the rows of a document, under names that say so.

    Raises BadLine for other rows, and for a column of ours, which would have to stand in each row.
    """
    for name, value in values.items():
        if is_rows(value) and name not in COLUMNS:
            message = f"{name!r} holds objects beside the rows: name it train or validation, or leave it out."
            raise BadLine(name, "beside_rows", message)
        if name in COLUMNS and value not in (None, "", [], {}):
            raise BadLine(
                name, "beside_rows", f"{name!r} stands beside the rows: write it into each row that it is for."
            )
    return {f"{name} (beside the rows)": value for name, value in values.items()}


def with_notes(row: tuple[str, Any], notes: dict[str, Any]) -> tuple[str, Any]:
    """Return (split, element) with the notes added, if the element is an object."""
    split, item = row
    return split, ({**item, **notes} if isinstance(item, dict) else item)


def elements(text: Text) -> Iterator[Any]:
    """Yield the elements of an array whose opening bracket was taken. Raises BadLine for an array that does not end."""
    if text.take("]"):
        return
    while True:
        yield text.value()
        if text.take("]"):
            return
        if not text.take(","):
            raise BadLine("", "not_json", "The array does not end: the file is incomplete, or a comma is missing.")
        if text.peek() == "]":
            raise BadLine("", "not_json", "There is a comma behind the last element of the array: leave it out.")
