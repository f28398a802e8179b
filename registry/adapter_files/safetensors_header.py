"""The header of a safetensors file, parsed with size limits before any library opens the file. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.core.counts import counted
from registry.adapter_files.findings import Finding, fault, listed, printable
from registry.adapter_files.tensor_names import CONVERT, WEIGHTS

MAX_HEADER_BYTES = 2 * 2**20
MAX_TENSORS = 20_000
DTYPE_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
DTYPE_BYTES |= dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 1)
# First bytes of files that are sent under the weights' name -> what they are, and the way out.
KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a GGUF file", "Send the adapter from which it was converted: PEFT's two files."),
    (b"PK\x03\x04", "a zip, as PyTorch's .bin files and archives are", CONVERT),
    (b"\x80\x02", "a Python pickle, which is never opened here", CONVERT),
    (b"\x80\x03", "a Python pickle, which is never opened here", CONVERT),
    (b"\x80\x04", "a Python pickle, which is never opened here", CONVERT),
    (b"\x1f\x8b", "a gzip archive", CONVERT),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file", "Fetch the file with `git lfs pull`."),
    (b"<!DOCTYPE", "a web page", "The download failed: sign in to the hub and fetch the file again."),
    (b"<html", "a web page", "The download failed: sign in to the hub and fetch the file again."),
    (b"\x89HDF", "an HDF5 file", "Save the adapter with PEFT's `save_pretrained`."),
)


@dataclass(frozen=True)
class Tensor:
    """A tensor's entry in the header: data type, shape, and the range [start, stop) of its bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Mismatch(ValueError):
    """Raised for a header that contradicts itself or the file; the message continues "The safetensors header"."""


class Unreadable(Exception):
    """Raised for a file that cannot be read as what it should be; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors in the header of a safetensors file, by name.

    Raises Unreadable if the file is of another format, or its header is over 2 MB, not valid, or does not match the
    file.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        return header_of(stream.read(min(size, MAX_HEADER_BYTES + 8)), size)


def tensors_of(heads: Iterable[tuple[bytes, int]]) -> dict[str, Tensor]:
    """Return the tensors of several safetensors files together, by name.

    `heads` are pairs (the file's first bytes with its whole header, its size). Raises Unreadable if a file cannot be
    read, or two have a tensor of the same name.
    """
    tensors: dict[str, Tensor] = {}
    for first, size in heads:
        header = header_of(first, size)
        if doubled := sorted(tensors.keys() & header.keys()):
            raise Unreadable(doubled_tensors(doubled))
        tensors |= header
    return tensors


def doubled_tensors(names: Sequence[str]) -> Finding:
    """Return the fault of tensors that occur in several shards, with the first name and the number of others."""
    return fault(
        "doubled_tensors", WEIGHTS, f"{listed(names, 1)} stands in several shards.", "Send one adapter's shards."
    )


def header_of(first: bytes, size: int) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file of `size` bytes, by name.

    `first` is the file's beginning and must contain the whole header. Raises Unreadable if it does not or is not valid.
    """
    # safetensors itself takes a header of 100 MB, and the last of two tensors with one name.
    length = int.from_bytes(first[:8], "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise Unreadable(other_file(first))
    raw = first[8 : 8 + length]
    if len(raw) < length:
        cause = f"The header has {counted(length, 'byte')}; only {len(raw):,} of them were sent."
        raise Unreadable(
            fault("header_cut", WEIGHTS, cause, "Send the file's first bytes up to the end of the header.")
        )
    refuse_crowd(raw)
    try:
        # Given bytes, json reads UTF-16 and skips a byte-order mark, and safetensors does neither.
        return check_tensors(json.loads(raw.decode(), object_pairs_hook=no_duplicates), size - 8 - length)
    except Mismatch as error:
        cause = f"The safetensors header {error}."
    except (ValueError, TypeError, LookupError, RecursionError):
        cause = "The safetensors header cannot be read, or does not match the file's length."
    raise Unreadable(fault("bad_header", WEIGHTS, cause, "Save or upload the file again."))


def other_file(first: bytes) -> Finding:
    """Return the fault of a file that is not in safetensors format; it says what the file is, by its first bytes."""
    if not first:
        return fault("no_safetensors", WEIGHTS, "The file is empty.", "Save or upload it again.")
    if first[257:262] == b"ustar":
        return fault("no_safetensors", WEIGHTS, "This is not a safetensors file, but a tar archive.", CONVERT)
    for magic, meaning, route in KINDS:
        if first.startswith(magic):
            return fault("no_safetensors", WEIGHTS, f"This is not a safetensors file, but {meaning}.", route)
    cause = "This is not a safetensors file, or its header is over 2 MB."
    return fault("no_safetensors", WEIGHTS, cause, "Save the adapter with PEFT's `save_pretrained`.")


def refuse_crowd(raw: bytes) -> None:
    """Raise Unreadable for a header with more than MAX_TENSORS tensors, by counting brackets before it is parsed."""
    if raw.count(b"{") > MAX_TENSORS + 2 or raw.count(b"[") > 2 * MAX_TENSORS:
        cause = f"The safetensors header names more than {MAX_TENSORS:,} tensors."
        raise Unreadable(fault("too_many_tensors", WEIGHTS, cause))


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict of JSON pairs, as `object_pairs_hook` of json.loads.

    Raises Mismatch for a key that occurs twice.
    """
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise Mismatch("names one tensor twice")
    return dict(pairs)


def check_tensors(header: Any, body_bytes: int) -> dict[str, Tensor]:
    """Return the tensors of a parsed header by name, after checking offsets and sizes.

    Tensors must fill the `body_bytes` after the header without gap or overlap, and each one's length must match its
    shape. Raises Mismatch for a file that ends early and for metadata that no library opens, Unreadable for an unknown
    data type, else ValueError, TypeError or LookupError. `__metadata__` is removed from `header`.
    """
    if not isinstance(header, dict):
        raise TypeError("no object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Mismatch("has a __metadata__ that is not an object of texts, which no library opens")
    if unknown := sorted({str(tensor["dtype"]) for tensor in header.values()} - DTYPE_BYTES.keys()):
        cause = f"The safetensors header names numbers of type {printable(unknown[0])}, which an adapter never has."
        raise Unreadable(fault("dtype", WEIGHTS, cause, "Save it as float32, float16 or bfloat16."))
    if len(header) > MAX_TENSORS:
        raise ValueError("too many tensors")
    end = 0
    for tensor in sorted(header.values(), key=lambda tensor: tensor["data_offsets"]):
        start, stop = tensor["data_offsets"]
        # JSON integers have no size limit: the product of unchecked ones could take minutes.
        if not all(map(is_size, (start, stop, *tensor["shape"][:5]))) or len(tensor["shape"]) > 4:
            raise ValueError("size")
        if start != end or stop - start != math.prod(tensor["shape"]) * DTYPE_BYTES[tensor["dtype"]]:
            raise ValueError("offsets")
        end = stop
    if end > body_bytes:
        raise Mismatch(f"names {counted(end, 'byte')} of tensors, but the file ends early, after {body_bytes:,}")
    if end != body_bytes:
        raise ValueError("body")
    return {
        name: Tensor(tensor["dtype"], tuple(tensor["shape"]), *tensor["data_offsets"])
        for name, tensor in header.items()
    }


def is_size(value: Any) -> bool:
    """Return True for a whole number from 0 to 2**48 - 1."""
    return type(value) is int and 0 <= value < 2**48
