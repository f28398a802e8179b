"""Writing a safetensors file anew with other names, or without some tensors; its numbers stay as they are. Pure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, BinaryIO

from registry.adapter_files.safetensors_header import read_header

BLOCK_BYTES = 4 * 2**20


def rewrite(path: Path, names: dict[str, str]) -> None:
    """Replace a safetensors file by one that has only the tensors that `names` maps, under their new names.

    The file is replaced in one step; the tensors' bytes stay as they are. Raises Unreadable for another file.
    """
    tensors = read_header(path)
    chosen = [(tensors[old], new) for old, new in names.items()]
    chosen.sort(key=lambda row: row[0].start)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, new in chosen:
        length = tensor.stop - tensor.start
        header[new] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + length]}
        end += length
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    partial = path.with_name(f".{path.name}.part")
    with path.open("rb") as source, partial.open("wb") as sink:
        body = 8 + int.from_bytes(source.read(8), "little")
        sink.write(len(raw).to_bytes(8, "little") + raw)
        for tensor, _ in chosen:
            source.seek(body + tensor.start)
            copy_bytes(source, sink, tensor.stop - tensor.start)
    shutil.move(partial, path)


def copy_bytes(source: BinaryIO, sink: BinaryIO, count: int) -> None:
    """Copy so many bytes in blocks. Raises EOFError if the source ends before."""
    while count:
        block = source.read(min(BLOCK_BYTES, count))
        if not block:
            raise EOFError("the file ends before its last tensor")
        sink.write(block)
        count -= len(block)
