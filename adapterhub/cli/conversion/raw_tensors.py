"""Tensors of safetensors files with their bytes as they are, so that types that numpy lacks survive a renaming."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.cli.exit_codes import Ended, Exit

MOST_HEADER_BYTES = 100 * 2**20
# First bytes of files under the weights' name -> what they are, and what to do.
KINDS = (
    (b"GGUF", "a GGUF file: send PEFT's two files, from which it was converted."),
    (b"PK\x03\x04", "a zip or PyTorch's pickle: name it adapter_model.bin if it is the latter."),
    (b"\x80", "a Python pickle: name it adapter_model.bin to have its tensors read."),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file with git lfs pull."),
    (b"<", "a web page: sign in to the hub and fetch the file again."),
)
# Type -> numpy's type of the same width. Numbers of BF16 and F8 are moved as bits; those of whole numbers are no
# adapter's, and the server says so beside its other faults.
WIDTHS: dict[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}
WIDTHS |= {"I8": "i1", "U8": "u1", "BOOL": "u1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4"}
WIDTHS |= {"I64": "<i8", "U64": "<u8"}


@dataclass(frozen=True)
class RawTensor:
    """A tensor: its type's name as in safetensors, and its elements; for BF16 and F8 their bits."""

    dtype: str
    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return self.values.shape

    def transposed(self) -> RawTensor:
        """Return a transposed copy of the matrix."""
        return RawTensor(self.dtype, np.ascontiguousarray(self.values.T))

    def as_float32(self) -> np.ndarray:
        """Return the numbers as float32."""
        if self.dtype == "BF16":
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        if self.dtype in EIGHT_BITS:
            numbers: np.ndarray = EIGHT_BITS[self.dtype][self.values]
            return numbers
        return self.values.astype(np.float32)


def small_floats(exponent_bits: int, mantissa_bits: int, *, has_infinity: bool) -> np.ndarray:
    """Return the float32 values of all 256 numbers of an 8-bit format, by their bits."""
    bias, top = 2 ** (exponent_bits - 1) - 1, 2**exponent_bits - 1
    values = []
    for bits in range(256):
        sign = -1.0 if bits & 0x80 else 1.0
        exponent, mantissa = (bits >> mantissa_bits) & top, bits & (2**mantissa_bits - 1)
        if has_infinity and exponent == top:
            values.append(sign * math.inf if mantissa == 0 else math.nan)
        elif not has_infinity and bits & 0x7F == 0x7F:
            values.append(math.nan)
        else:
            whole = mantissa / 2**mantissa_bits + (1 if exponent else 0)
            values.append(sign * whole * 2.0 ** (max(exponent, 1) - bias))
    return np.array(values, np.float32)


EIGHT_BITS = {
    "F8_E4M3": small_floats(4, 3, has_infinity=False),
    "F8_E5M2": small_floats(5, 2, has_infinity=True),
}

Tensors = dict[str, RawTensor]


def read_safetensors(path: Path) -> Tensors:
    """Return every tensor of the file by name.

    Raises Ended if it is no safetensors file or has other types of numbers.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MOST_HEADER_BYTES, path.stat().st_size - 8):
            stream.seek(0)
            raise Ended(f"{path} is {kind_of(stream.read(32))}", Exit.USAGE)
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            body = stream.read()
            return {name: tensor_of(entry, body) for name, entry in header.items()}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise Ended(f"{path} cannot be read as safetensors: {error}", Exit.USAGE) from None


def kind_of(first: bytes) -> str:
    """Return, by a file's first bytes, what it is instead of safetensors and what to do, for an error message."""
    known = (sentence for magic, sentence in KINDS if first.startswith(magic))
    return next(known, "not a safetensors file: save the adapter with PEFT's save_pretrained.")


def tensor_of(entry: dict[str, Any], body: bytes) -> RawTensor:
    """Return the tensor of a header's entry.

    Raises ValueError for a wrong size or a type of unknown width.
    """
    start, stop = entry["data_offsets"]
    if entry["dtype"] not in WIDTHS:
        raise ValueError(f"numbers of type {entry['dtype']}. Save it as float32, float16 or bfloat16.")
    values = np.frombuffer(body[start:stop], WIDTHS[entry["dtype"]]).reshape(entry["shape"])
    return RawTensor(entry["dtype"], values)


def write_safetensors(tensors: Mapping[str, RawTensor], path: Path) -> None:
    """Write the tensors, sorted by name; equal tensors give identical bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items()):
        length = tensor.values.nbytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + length]}
        end += length
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as sink:
        sink.write(len(raw).to_bytes(8, "little") + raw)
        for _, tensor in sorted(tensors.items()):
            sink.write(np.ascontiguousarray(tensor.values).tobytes())
