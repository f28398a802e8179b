"""Small files that unfold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.ipc
import pyarrow.parquet

MANY = 5000


def repeated(path: Path, codec: str) -> bytes:
    """One text of 3 MB in thousands of rows: kilobytes on the wire, gigabytes when decoded."""
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * MANY, pyarrow.int32()), ["a" * 3 * 2**20])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": texts, "completion": ["x"] * MANY}), path, compression=codec)
    return path.read_bytes()


def in_arrow(form: Any, codec: str) -> bytes:
    """The same as an Arrow file or stream, whose dictionary holds the text once."""
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * MANY, pyarrow.int32()), ["a" * 3 * 2**20])
    return written(pyarrow.table({"prompt": texts, "completion": ["x"] * MANY}), form, codec)


def zeros_in_arrow(form: Any, codec: str) -> bytes:
    """One text of half a gigabyte in one row, of zeros but for its codec."""
    text = pyarrow.array(["0" * 2**29], pyarrow.large_string())
    return written(pyarrow.table({"text": text}), form, codec)


def written(table: pyarrow.Table, form: Any, codec: str) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with form(sink, table.schema, options=pyarrow.ipc.IpcWriteOptions(compression=codec)) as file:
        file.write_table(table)
    return bytes(sink.getvalue())


def packed(codec: str, unit: bytes, count: int) -> bytes:
    """A text that repeats itself, compressed: a thousandth of it or less."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        for _ in range(count):
            stream.write(unit)
    return bytes(sink.getvalue())


def one_endless_row(path: Path) -> bytes:
    """A conversation of 16 million messages in 700 bytes."""
    count = 16_000_000
    roles = pyarrow.DictionaryArray.from_arrays(pyarrow.array(numpy.zeros(count, "int8")), ["user"])
    turns = pyarrow.StructArray.from_arrays([roles], names=["role"])
    row = pyarrow.ListArray.from_arrays(pyarrow.array([0, count], pyarrow.int32()), turns)
    pyarrow.parquet.write_table(pyarrow.table({"messages": row}), path, compression="zstd")
    return path.read_bytes()
