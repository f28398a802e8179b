"""A run's metrics as files that other programs read: CSV, and an event file for TensorBoard.

The event file is a sequence of TFRecords (length, checksum, `Event`, checksum). It is written here because the format
is small and stable, and TensorBoard's own writer comes with a server.
https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

from __future__ import annotations

import csv
import io
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

Step = tuple[int, dict[str, float]]
# Names in this order before all others.
FIRST = ("loss", "held_out_loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes")
CASTAGNOLI = 0x82F63B78
MASK_DELTA = 0xA282EAD8


@dataclass(frozen=True)
class MetricFile:
    """A file to download: its name, media type and content."""

    name: str
    media_type: str
    content: bytes


def numbers(steps: Iterable[tuple[int, dict[str, object]]]) -> list[Step]:
    """Return the finite numbers among each step's values, in the order of steps."""
    return sorted(
        (step, {name: float(value) for name, value in values.items() if is_number(value)}) for step, values in steps
    )


def is_number(value: object) -> TypeGuard[int | float]:
    """Return True for a finite number other than True and False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def names_of(steps: Sequence[Step]) -> list[str]:
    """Return the names of all values: those of FIRST in their order, then the others by name."""
    known = {name for _, values in steps for name in values}
    return [*(name for name in FIRST if name in known), *sorted(known - set(FIRST))]


def as_csv(steps: Sequence[Step], run: str) -> MetricFile:
    """Return a CSV file with a line for each step and a column for each name; missing values are empty.

    `run` is the run's id, after which the file is named.
    """
    text, names = io.StringIO(), names_of(steps)
    table = csv.writer(text)
    table.writerow(["step", *names])
    table.writerows([step, *(values.get(name, "") for name in names)] for step, values in steps)
    return MetricFile(f"{run}.csv", "text/csv; charset=utf-8", text.getvalue().encode())


def as_tensorboard(steps: Sequence[Step], run: str, began: float) -> MetricFile:
    """Return an event file with a scalar for each value; its name ends with `run`, the run's id.

    `began` is the time of every event, in seconds since 1970, because a step's own time is not recorded.
    """
    content = b"".join(map(record, [event(began, 0, field(3, b"brain.Event:2")), *events(steps, began)]))
    return MetricFile(f"events.out.tfevents.{int(began)}.adapterhub.{run}", "application/octet-stream", content)


def events(steps: Sequence[Step], began: float) -> Iterator[bytes]:
    """Yield a serialised `Event` message for each step with its scalars."""
    for step, values in steps:
        scalars = (
            field(1, field(1, name.encode()) + b"\x15" + struct.pack("<f", value)) for name, value in values.items()
        )
        yield event(began, step, field(5, b"".join(scalars)))


def event(at: float, step: int, what: bytes) -> bytes:
    """Return a serialised `Event` message: wall_time (field 1), step (field 2), and the serialised field `what`.

    `at` is the wall_time, in seconds since 1970.
    """
    return b"\x09" + struct.pack("<d", at) + b"\x10" + varint(step) + what


def field(number: int, content: bytes) -> bytes:
    """Return a serialised length-delimited field of a protocol buffer."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Return a whole number, 0 or above, as a protocol buffer's varint: seven bits a byte, the lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def record(content: bytes) -> bytes:
    """Return the content as a TFRecord: length and content, each followed by its checksum."""
    length = struct.pack("<Q", len(content))
    return length + checksum(length) + content + checksum(content)


def checksum(content: bytes) -> bytes:
    """Return the masked CRC-32C of the content, as four little-endian bytes."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF)


def table_entry(value: int) -> int:
    """Return the CRC-32C of one byte, an entry of the table of `checksum`."""
    for _ in range(8):
        value = value >> 1 ^ (CASTAGNOLI if value & 1 else 0)
    return value


TABLE = [table_entry(byte) for byte in range(256)]
