"""Readers of JSONL, Parquet, CSV and plain-text files as numbered records, each in constant memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from training.datasets.rows import MAX_ROW_BYTES, BadLine, json_object, not_utf8, too_long

# The number of the line (of Parquet: of the row), from 1, with the record or the error that it has.
Record = tuple[int, dict[str, Any] | BadLine]
SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
}
# Rows decoded at once: of the longest ones 64 take 256 MB.
PARQUET_BATCH = 64


class NotThisFormat(ValueError):
    """The content of the file is not of the format that its name or the user states."""


def format_of(name: str) -> str | None:
    """Return the format for the suffix of the file's name; None for an unknown suffix."""
    return SUFFIXES.get(Path(name).suffix.lower())


def records_of(path: Path, form: str) -> Iterator[Record]:
    """Yield numbered records, or a BadLine for a line that is none. Raises NotThisFormat for the whole file."""
    return READERS[form](path)


def numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its number; a longer one is cut one byte over the cap to keep memory constant."""
    number = 0
    while raw := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        rest = raw
        while rest and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_ROW_BYTES)
        yield number, raw


def jsonl(path: Path) -> Iterator[Record]:
    """Yield the records of a file of JSON lines."""
    with path.open("rb") as stream:
        for number, raw in numbered_lines(stream):
            if raw.strip():
                yield number, caught(lambda raw=raw: json_object(raw))


def caught(read: Callable[[], dict[str, Any]]) -> dict[str, Any] | BadLine:
    """Return the record, or the error of a line that cannot be read."""
    try:
        return read()
    except BadLine as error:
        return error


def parquet(path: Path) -> Iterator[Record]:
    """Yield the records of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_BATCH, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowMemoryError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise NotThisFormat(f"This is no Parquet file that can be read: {str(error).splitlines()[0]}") from None


def delimited(path: Path) -> Iterator[Record]:
    """Read a CSV file with a header; the delimiter is the one of comma, semicolon and tab that the header has most."""
    csv.field_size_limit(MAX_ROW_BYTES)
    with path.open("rb") as stream:
        lines = text_lines(stream)
        try:
            header = next(lines, "").removeprefix("\ufeff")
            delimiter = max(",;\t", key=header.count)
            columns = next(csv.reader([header], delimiter=delimiter, strict=True), [])
        except (csv.Error, BadLine):
            yield 1, BadLine("", "not_csv", "The header cannot be read: name the columns in the first line.")
            return
        yield from cells(csv.reader(lines, delimiter=delimiter, strict=True), columns)


def text_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield the file's lines. Raises BadLine for one that is too long or not UTF-8."""
    for _, raw in numbered_lines(stream):
        if len(raw) > MAX_ROW_BYTES:
            raise too_long()
        try:
            yield raw.decode()
        except UnicodeDecodeError:
            raise not_utf8() from None


def cells(reader: Any, columns: list[str]) -> Iterator[Record]:
    """Yield the records of a CSV file; stop at an unclosed quote, as the start of the next record is then unknown."""
    while True:
        number = reader.line_num + 2
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, BadLine("", "not_csv", f"The record cannot be read: {error}. Nothing after it was looked at.")
            return
        except BadLine as error:
            yield number, error
            return
        if values and len(values) != len(columns):
            message = f"The record has {len(values)} cells, the header has {len(columns)}."
            yield number, BadLine("", "wrong_cells", message)
        elif values:
            yield number, dict(zip(columns, values, strict=True))


def paragraphs(path: Path) -> Iterator[Record]:
    """Yield the paragraphs of a text file, separated by empty lines."""
    with path.open("rb") as stream:
        start, part = 1, b""
        for number, raw in numbered_lines(stream):
            if raw.strip():
                start = start if part else number
                # One byte over the cap is enough for the error.
                part = (part + raw)[: MAX_ROW_BYTES + 1]
            elif part:
                yield start, caught(lambda part=part: paragraph(part))
                part = b""
        if part:
            yield start, caught(lambda: paragraph(part))


def paragraph(raw: bytes) -> dict[str, Any]:
    """Return the paragraph as a row. Raises BadLine."""
    if len(raw) > MAX_ROW_BYTES:
        raise too_long()
    try:
        return {"text": raw.decode().strip()}
    except UnicodeDecodeError:
        raise not_utf8() from None


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    "jsonl": jsonl,
    "parquet": parquet,
    "csv": delimited,
    "text": paragraphs,
}
FORMATS = tuple(READERS)
