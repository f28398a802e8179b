"""Comparison of whole embeddings in an adapter's file with those of its base model. numpy, no torch, no database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from registry.adapter_files.findings import Finding, fault, listed
from registry.adapter_files.safetensors_header import Tensor, Unreadable, read_header
from registry.adapter_files.tensor_names import MERGE, WEIGHTS
from registry.adapter_files.tensor_values import as_float32, rounded_to

ROWS_BYTES = 8 * 2**20
# The base model's names for an embedding; with tied weights the output embedding is stored as the input embedding.
PLACES = {
    "embed_tokens": ("model.embed_tokens.weight",),
    "lm_head": ("lm_head.weight", "model.embed_tokens.weight"),
}


def copy_faults(adapter: Path, copies: dict[str, str], base: Path) -> list[Finding]:
    """Return one fault that names every embedding which differs from the base model's, or an empty list.

    `copies` maps names of tensors in the folder `adapter` to the embedding that each holds (`embed_tokens` or
    `lm_head`); `base` is the base model's folder. Raises Unreadable if the header of the adapter's weights cannot be
    read, and KeyError for a tensor whose type is not a float of 16 to 64 bits.
    """
    changed = [name for name, embedding in copies.items() if not is_copy(adapter / WEIGHTS, name, base, embedding)]
    if not changed:
        return []
    cause = f"{listed(sorted(changed))} was trained: it differs from the base model's."
    return [fault("embeddings_changed", WEIGHTS, cause, MERGE)]


def is_copy(weights: Path, name: str, base: Path, embedding: str) -> bool:
    """Return True if the tensor is a copy of the base model's embedding, exact or rounded to a type of fewer bits.

    `name` is the tensor in the file `weights`; `embedding` is `embed_tokens` or `lm_head`. False if it differs, or if
    the base model's files hold no such embedding. Raises Unreadable if the header of `weights` cannot be read, and
    KeyError if it has no such tensor, or for a type that is not a float of 16 to 64 bits.
    """
    for place in PLACES[embedding]:
        for shard in sorted(base.glob("*.safetensors")):
            own = base_tensors(shard).get(place)
            if own is not None:
                return equal(weights, read_header(weights)[name], shard, own)
    return False


def parameters_of(base: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a base model's tensors by name; a head that is tied to the embedding has an entry, too."""
    tensors = [pair for shard in base.glob("*.safetensors") for pair in base_tensors(shard).items()]
    shapes = {name: tensor.shape for name, tensor in tensors}
    (embedding,), (head, _) = PLACES["embed_tokens"], PLACES["lm_head"]
    return {head: shapes[embedding], **shapes} if embedding in shapes else shapes


def base_tensors(shard: Path) -> dict[str, Tensor]:
    """Return the tensors of a base model's safetensors file, by name; an empty dict if its header cannot be read."""
    try:
        return read_header(shard)
    except Unreadable:
        return {}


def equal(weights: Path, tensor: Tensor, shard: Path, own: Tensor) -> bool:
    """Return True if `tensor` in `weights` equals `own`, a tensor in `shard`, rounded to the data type of `tensor`.

    False for another shape. The files are read block by block. Raises KeyError for a data type that is not a float of
    16 to 64 bits.
    """
    if tensor.shape != own.shape:
        return False
    with weights.open("rb") as ours, shard.open("rb") as theirs:
        pairs = zip(blocks(ours, tensor), blocks(theirs, own), strict=True)
        return all(np.array_equal(copy, rounded_to(tensor.dtype, block)) for copy, block in pairs)


def blocks(stream: BinaryIO, tensor: Tensor) -> Iterator[np.ndarray]:
    """Yield the tensor's numbers from the safetensors file as flat float32 arrays of at most 8 MiB each.

    Raises KeyError for a data type that is not a float of 16 to 64 bits.
    """
    stream.seek(0)
    stream.seek(8 + int.from_bytes(stream.read(8), "little") + tensor.start)
    count = int(np.prod(tensor.shape, dtype=np.int64))
    width = (tensor.stop - tensor.start) // max(count, 1)
    step = ROWS_BYTES // 4
    for start in range(0, count, step):
        yield as_float32(tensor.dtype, stream.read(min(step, count - start) * width))
