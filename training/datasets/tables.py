"""Readers of Parquet and Arrow files as numbered records, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from training.datasets.text_streams import NotThisFormat

# Rows decoded at once: of the longest ones 64 take 256 MB.
BATCH = 64
# The first bytes of an Arrow file; a stream of Arrow has none of its own.
ARROW_MARK = b"ARROW1"
Record = tuple[int, dict[str, Any]]


def parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a Parquet file with their number from 1.

    Raises NotThisFormat if the file cannot be read or has a column twice.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            require_single_names(file.schema_arrow.names)
            yield from rows_of(file.iter_batches(BATCH, use_threads=False))
    except pyarrow.ArrowMemoryError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise NotThisFormat(f"This Parquet file cannot be read: {first_line(error)}") from None


def arrow(path: Path) -> Iterator[Record]:
    """Yield the rows of an Arrow file or stream, as `datasets` and Feather write them, with their number from 1.

    Raises NotThisFormat if the file cannot be read or has a column twice.
    """
    import pyarrow

    try:
        with pyarrow.OSFile(str(path)) as source:
            if source.read(len(ARROW_MARK)) == ARROW_MARK:
                file = pyarrow.ipc.open_file(source)
                batches = (file.get_batch(place) for place in range(file.num_record_batches))
            else:
                source.seek(0)
                file = pyarrow.ipc.open_stream(source)
                batches = iter(file)
            require_single_names(file.schema.names)
            pieces = (batch.slice(start, BATCH) for batch in batches for start in range(0, batch.num_rows, BATCH))
            yield from rows_of(pieces)
    except pyarrow.ArrowMemoryError:
        raise
    except (pyarrow.ArrowException, OSError) as error:
        raise NotThisFormat(f"This Arrow file cannot be read: {first_line(error)}") from None


def rows_of(batches: Iterator[Any]) -> Iterator[Record]:
    """Yield (number from 1, row) of record batches; bytes and decimals in the rows are converted by `as_text`."""
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, {name: as_text(value) for name, value in row.items()}


def require_single_names(names: list[str]) -> None:
    """Raise NotThisFormat for a column that occurs twice, since one of the two values would be dropped."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise NotThisFormat(f"The table has the column {twice!r} twice: give each its own name.")


def as_text(value: Any) -> Any:
    """Return bytes that are UTF-8 as text, as a column without a logical type has it, and decimals as numbers.

    Other values are unchanged.
    """
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def first_line(error: Exception) -> str:
    """Return the first line of an error's message; the name of its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS = {"parquet": parquet, "arrow": arrow}
