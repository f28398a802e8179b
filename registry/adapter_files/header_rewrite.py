"""Rewriting of safetensors files: other names, fewer tensors, several files in one. The tensors' bytes stay. Pure."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from registry.adapter_files.safetensors_header import Tensor, Unreadable, doubled_tensors, read_header

BLOCK_BYTES = 4 * 2**20
# A tensor with its file and the name under which it is written.
Row = tuple[Path, Tensor, str]


def rewrite(path: Path, names: dict[str, str]) -> None:
    """Replace a safetensors file by one that has only the tensors in `names`, which maps old names to new ones.

    The file is replaced in one step; the tensors' bytes stay as they are. Raises Unreadable for a file of another
    format, and KeyError for a name that it lacks.
    """
    tensors = read_header(path)
    chosen = [(path, tensors[old], new) for old, new in names.items()]
    partial = path.with_name(f".{path.name}.part")
    write(sorted(chosen, key=lambda row: row[1].start), partial)
    shutil.move(partial, path)


def join(shards: Iterable[Path], target: Path) -> None:
    """Write the tensors of all `shards` into the safetensors file `target`.

    Raises Unreadable if a shard cannot be read, or two shards have a tensor of the same name.
    """
    rows = [(shard, tensor, name) for shard in shards for name, tensor in ordered(read_header(shard))]
    counts = Counter(name for _, _, name in rows)
    if doubled := sorted(name for name, count in counts.items() if count > 1):
        raise Unreadable(doubled_tensors(doubled))
    write(rows, target)


def ordered(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return the tensors in the order in which they lie in their file."""
    return sorted(tensors.items(), key=lambda item: item[1].start)


def write(rows: list[Row], target: Path) -> None:
    """Write the tensors of `rows`, in their order, as the safetensors file `target`.

    A row is (source file, the tensor's entry in its header, the tensor's new name). Bytes are copied from their files.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for _, tensor, name in rows:
        length = tensor.stop - tensor.start
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + length]}
        end += length
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with target.open("wb") as sink:
        sink.write(len(raw).to_bytes(8, "little") + raw)
        for path, tensor, _ in rows:
            with path.open("rb") as source:
                source.seek(8 + int.from_bytes(source.read(8), "little") + tensor.start)
                copy_bytes(source, sink, tensor.stop - tensor.start)


def copy_bytes(source: BinaryIO, sink: BinaryIO, count: int) -> None:
    """Copy `count` bytes from source to sink in blocks. Raises EOFError if the source ends earlier."""
    while count:
        block = source.read(min(BLOCK_BYTES, count))
        if not block:
            raise EOFError("the file ends before its last tensor")
        sink.write(block)
        count -= len(block)
