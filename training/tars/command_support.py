"""Code shared by the commands of `python -m training.tars`: parsing of options, error conversion and file writes."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from training.lm import token_sequences
from training.lm.error_reporting import BadInput
from training.tars import allocation, presets


def budget(text: str) -> tuple[str, int]:
    """Parse KIND:VALUE, as in uniform:16, to the kind and the number.

    Raises ArgumentTypeError for an unknown kind or a value that is not a whole number.
    """
    kind, _, value = text.partition(":")
    if kind not in allocation.BUDGET_KINDS or not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not uniform:RANK, params:N or bytes:N")
    return kind, int(value)


@contextlib.contextmanager
def named(flag: str) -> Iterator[None]:
    """Convert AllocationError, BadSettings and DataError in the block to BadInput that names an option.

    It is the wrong setting's option, or for bad data `flag`, such as `--data`.
    """
    try:
        yield
    except (allocation.AllocationError, presets.BadSettings) as error:
        raise BadInput(f"--{error.field.replace('_', '-')}: {error}") from None
    except token_sequences.DataError as error:
        raise BadInput(f"{flag}: {error}") from None


def atomically(path: Path, content: bytes) -> None:
    """Write the content to the path, which is replaced in one step."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)
