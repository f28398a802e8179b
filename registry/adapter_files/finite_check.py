"""Check of an adapter's weights for NaN, infinity and modules without effect. No torch, no database.

Files are read in blocks, so that memory use does not grow with their size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

BLOCK_BYTES = 4 * 2**20
# A number is infinite or NaN when all bits of its exponent are set; its sign does not matter.
FORMATS: dict[str, tuple[np.dtype[Any], int, int]] = {
    "F32": (np.dtype("<u4"), 0x7F800000, 0x7FFFFFFF),
    "F16": (np.dtype("<u2"), 0x7C00, 0x7FFF),
    "BF16": (np.dtype("<u2"), 0x7F80, 0x7FFF),
}


def fault_in(path: Path) -> str:
    """Return a sentence on the first fault of the weights in a LoRA's safetensors file; "" if they are fine.

    Faults are NaN or infinity in a tensor, and an A or B of zeros in every module. The header must have been checked
    before.
    """
    zeros: dict[str, bool] = {}
    with path.open("rb") as stream:
        for name, tensor in in_order(stream):
            finite, zero = judge(stream, tensor)
            if not finite:
                return f"{name} contains NaN or infinite numbers: the training diverged, or the file is damaged."
            module = name.rpartition(".lora_")[0]
            zeros[module] = zeros.get(module, False) or zero
    if all(zeros.values()):
        return "In every module A or B is zero: the adapter changes nothing. Was it saved before its training?"
    return ""


def non_finite_in(path: Path) -> str:
    """Return the fault of a safetensors file that holds NaN or infinity, or "".

    Unlike `fault_in` it accepts tensors of any method, and tensors of zeros. The header must have been checked before.
    """
    with path.open("rb") as stream:
        for name, tensor in in_order(stream):
            if not judge(stream, tensor)[0]:
                return f"{name} contains NaN or infinite numbers: the training diverged, or the file is damaged."
    return ""


def in_order(stream: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each tensor's name and header entry in file order; the stream is left at the first tensor's bytes."""
    header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    header.pop("__metadata__", None)
    yield from sorted(header.items(), key=lambda item: item[1]["data_offsets"][0])


def judge(stream: BinaryIO, tensor: dict[str, Any]) -> tuple[bool, bool]:
    """Read the tensor's bytes, which come next in the stream; return (all values finite, all values zero).

    Both are False if the file ends before the tensor does.
    """
    kind, exponent, magnitude = FORMATS[tensor["dtype"]]
    start, stop = tensor["data_offsets"]
    zero = True
    while start < stop:
        block = stream.read(min(BLOCK_BYTES, stop - start))
        if not block:
            return False, False
        start += len(block)
        bits = np.frombuffer(block, kind)
        if ((bits & exponent) == exponent).any():
            return False, False
        zero = zero and not (bits & magnitude).any()
    return True, zero
