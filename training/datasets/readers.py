"""Readers of JSONL, CSV, plain-text and table files as numbered records, each in constant memory."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from training.datasets import json_arrays, tables
from training.datasets.line_errors import MAX_ROW_BYTES, BadLine, json_object, not_utf8, too_long
from training.datasets.text_streams import as_utf8, inner_name, refuse_table, unpacked

# The number of the line (of Parquet: of the row), from 1, with the record or the error that it has.
Record = tuple[int, dict[str, Any] | BadLine]
SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
}
DELIMITERS = ",;\t|"
UNKNOWN_DELIMITER = re.compile(r"\w\s*([:^~!#])\s*\w")
QUOTED = re.compile(r'"[^"]*"')
# The first line by which spreadsheets name the delimiter.
SEPARATOR = re.compile(r"(?i)sep=([,;\t|])")
# Bytes by which a JSON file is recognised as one document or as a row a line.
PEEK = 2**16


def format_of(name: str) -> str | None:
    """Return the format for the suffix of the file's name, before that of a compression; None for an unknown one."""
    return SUFFIXES.get(Path(inner_name(name)).suffix.lower())


def records_of(path: Path, form: str, encoding: str = "") -> Iterator[Record]:
    """Yield (number, record) of a file, with a BadLine in place of a record that cannot be read.

    The number, from 1, is that of the record's first line; in tables and in one JSON document it is that of the row.
    `form` is one of FORMATS; `encoding` "" is UTF-8. A compressed file is unpacked first. Raises NotThisFormat if the
    file as a whole cannot be read in this form.
    """
    with unpacked(path) as plain:
        if form in tables.READERS:
            yield from tables.READERS[form](plain)
            return
        refuse_table(plain)
        with as_utf8(plain, encoding) as stream:
            yield from TEXT_READERS[form](stream)


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) of every line.

    A line over MAX_ROW_BYTES is cut one byte above that, so that memory is constant.
    """
    number = 0
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        rest = raw
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_ROW_BYTES)
        yield number, raw


def jsonl(stream: BinaryIO) -> Iterator[Record]:
    """Yield the numbered rows of a JSON file; blank lines are skipped.

    It has one object per line, objects that span several lines, or one document that contains arrays of objects. A
    BadLine takes the place of a row that cannot be read.
    """
    start = stream.tell()
    beginning = stream.read(PEEK)
    stream.seek(start)
    if json_arrays.is_array(beginning):
        yield from json_arrays.rows_in(stream)
        return
    if json_arrays.is_sequence(beginning):
        yield from json_arrays.rows_in(stream, json_arrays.objects)
        return
    for number, raw in numbered_lines(stream):
        if raw.strip():
            # A sequence of JSON texts has a mark before each (RFC 7464).
            yield number, caught(partial(json_object, raw.removeprefix(b"\x1e")))


def caught(read: Callable[[], dict[str, Any]]) -> dict[str, Any] | BadLine:
    """Return the record that the call returns, or the BadLine that it raises."""
    try:
        return read()
    except BadLine as error:
        return error


def delimited(stream: BinaryIO) -> Iterator[Record]:
    """Yield the numbered records of a CSV file with a header; a first line `sep=;` names the delimiter.

    Otherwise it is the one of DELIMITERS that occurs most in the header outside quotes; if the header has a space after
    each, that space belongs to no cell. A header that cannot be read yields one BadLine.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    lines, passed = text_lines(stream), 1
    try:
        header = next(lines, "")
        while header and not header.strip():
            header, passed = next(lines, ""), passed + 1
        named = SEPARATOR.fullmatch(header.rstrip("\r\n"))
        header, passed = (next(lines, ""), passed + 1) if named else (header, passed)
        plain = QUOTED.sub("", header)
        delimiter = named[1] if named else max(DELIMITERS, key=plain.count)
        spaced = plain.count(delimiter) > 0 and plain.count(delimiter) == plain.count(f"{delimiter} ")
        options: dict[str, Any] = {"delimiter": delimiter, "skipinitialspace": spaced, "strict": True}
        columns = next(csv.reader([header], **options), [])
    except (csv.Error, BadLine) as error:
        reason = str(error) if isinstance(error, BadLine) else "Name the columns in the first line."
        yield 1, BadLine("", "not_csv", f"The header cannot be read. {reason}")
        return
    if len(columns) == 1 and (other := UNKNOWN_DELIMITER.search(columns[0])):
        message = f"The header is one column; {other[1]!r} is no delimiter here: take a comma, a semicolon, a tab or |."
        yield passed, BadLine("", "not_csv", message)
        return
    if len(set(columns)) < len(columns):
        yield 1, BadLine("", "not_csv", "The header names a column twice: give each its own name.")
        return
    yield from cells(csv.reader(lines, **options), columns, passed + 1)


def text_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the lines of a UTF-8 stream as text. Raises BadLine for one that is too long or not UTF-8."""
    for _, raw in numbered_lines(stream):
        if len(raw) > MAX_ROW_BYTES:
            raise too_long()
        try:
            yield raw.decode()
        except UnicodeDecodeError:
            raise not_utf8() from None


def cells(reader: Any, columns: list[str], first: int = 2) -> Iterator[Record]:
    """Yield the numbered records of a CSV file, a BadLine for one with another number of cells.

    Blank lines are skipped. `first` is the number of the first line that the reader gets. It stops at a record that
    cannot be read, because the start of the next one is then unknown.
    """
    while True:
        number = reader.line_num + first
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, BadLine("", "not_csv", f"The record cannot be read: {error}. Nothing after it was checked.")
            return
        except BadLine as error:
            yield number, error
            return
        if values and len(values) != len(columns):
            message = (
                f"The record has {len(values)} cells, the header has {len(columns)}. The first line names the columns; "
                "a cell that holds the delimiter stands in quotes."
            )
            yield number, BadLine("", "wrong_cells", message)
        elif values:
            yield number, dict(zip(columns, values, strict=True))


def paragraphs(stream: BinaryIO) -> Iterator[Record]:
    """Yield (number of the first line, {text}) of the paragraphs of a text; empty lines separate them.

    A BadLine takes the place of a paragraph that is too long or not UTF-8.
    """
    start, part = 1, b""
    for number, raw in numbered_lines(stream):
        if raw.strip():
            start = start if part else number
            # One byte over the cap is enough for the error.
            part = (part + raw)[: MAX_ROW_BYTES + 1]
        elif part:
            yield start, caught(partial(paragraph, part))
            part = b""
    if part:
        yield start, caught(partial(paragraph, part))


def paragraph(raw: bytes) -> dict[str, Any]:
    """Return a paragraph as {text}. Raises BadLine if it is too long or not UTF-8."""
    if len(raw) > MAX_ROW_BYTES:
        raise too_long()
    try:
        return {"text": raw.decode().strip()}
    except UnicodeDecodeError:
        raise not_utf8() from None


TEXT_READERS: dict[str, Callable[[BinaryIO], Iterator[Record]]] = {
    "jsonl": jsonl,
    "csv": delimited,
    "text": paragraphs,
}
FORMATS = ("jsonl", "parquet", "arrow", "csv", "text")
