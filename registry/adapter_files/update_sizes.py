"""The size of an adapter's updates against its base model's weights, and rows of zeros. numpy, no torch, no database.

Weights are read in blocks. B A is never multiplied out: its Frobenius norm follows from two rank x rank matrices,
sqrt(trace((B'B) (A A'))).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapterhub.core.counts import counted
from registry.adapter_files.base_copies import base_tensors, blocks
from registry.adapter_files.findings import Finding, fault, listed, notice
from registry.adapter_files.safetensors_header import Tensor, read_header
from registry.adapter_files.scales import Scales
from registry.adapter_files.tensor_names import PREFIX, WEIGHTS
from registry.adapter_files.tensor_values import FLOATS

# Below the first share of the base weights an update is lost in float32, below the second in bfloat16.
LOST, NEGLIGIBLE = 2.0**-24, 2.0**-9 / 100
# A training leaves hardly a row of B exactly zero; a save of one part of a sharded model leaves most of them so.
MANY_ZERO_ROWS = 0.1


@dataclass(frozen=True)
class UpdateSize:
    """The size of a module's update: its Frobenius norm, and that norm as a share of the base weight's.

    `share` is None if the base weight's norm is not known. `zero_rows` of the `rows` rows of B are zero.
    """

    norm: float
    share: float | None
    zero_rows: int
    rows: int


def weight_norms(base: Path) -> dict[str, float]:
    """Return the Frobenius norm of each linear module's weight by module name, from all safetensors files in `base`.

    Weights of other types than F64, F32, F16 and BF16, and files whose header cannot be read, are left out.
    """
    norms = {}
    for shard in sorted(base.glob("*.safetensors")):
        for name, tensor in base_tensors(shard).items():
            if name.endswith("_proj.weight") and tensor.dtype in FLOATS:
                with shard.open("rb") as stream:
                    total = sum(float(np.square(block, dtype=np.float64).sum()) for block in blocks(stream, tensor))
                norms[name.removesuffix(".weight")] = math.sqrt(total)
    return norms


def update_sizes(folder: Path, config: Mapping[str, Any], norms: Mapping[str, float]) -> dict[str, UpdateSize]:
    """Return the size of every module's update in a checked adapter's folder, by module name.

    `norms` holds the Frobenius norms of the base weights by module. Raises Unreadable if the header of the weights
    cannot be read.
    """
    scales, tensors = Scales(dict(config)), read_header(folder / WEIGHTS)
    sizes = {}
    for module in sorted({name.rpartition(".lora_")[0] for name in tensors}):
        a, b = (matrix(folder / WEIGHTS, tensors[f"{module}.lora_{side}.weight"]) for side in "AB")
        name = module.removeprefix(PREFIX)
        squared = float(np.sum((b.T @ b) * (a @ a.T).T))
        norm = abs(scales.of(name, a.shape[0])) * math.sqrt(max(squared, 0.0))
        share = norm / norms[name] if norms.get(name) else None
        sizes[name] = UpdateSize(norm, share, int((~b.any(axis=1)).sum()), b.shape[0])
    return sizes


def matrix(path: Path, tensor: Tensor) -> np.ndarray:
    """Read a two-dimensional tensor of the safetensors file at `path` as a float64 matrix.

    Raises KeyError for a data type that is not a float of 16 to 64 bits.
    """
    with path.open("rb") as stream:
        parts = [np.asarray(block, np.float64) for block in blocks(stream, tensor)]
    return np.concatenate(parts).reshape(tensor.shape)


def size_findings(sizes: Mapping[str, UpdateSize]) -> Iterator[Finding]:
    """Yield findings on the updates: too small to count, modules without any update, and many rows of zeros in B.

    An adapter whose largest update is lost in float32 is a fault, all else is a notice. The updates are judged as too
    small only if every module's share is known.
    """
    shares = [size.share for size in sizes.values() if size.share is not None]
    if shares and len(shares) == len(sizes) and max(shares) < LOST:
        cause = f"The largest update is {max(shares):.1e} of its base weight, too little to change it in float32."
        yield fault("no_effect", WEIGHTS, f"{cause} The adapter changes nothing.", "Was it saved before its training?")
    elif shares and len(shares) == len(sizes) and max(shares) < NEGLIGIBLE:
        cause = f"The largest update is {max(shares):.1e} of its base weight, which hardly changes it in bfloat16."
        yield notice("negligible", WEIGHTS, cause, "Compare its answers with the base model's before it is promoted.")
    if idle := [name for name, size in sizes.items() if not size.norm]:
        yield notice(
            "idle_modules",
            WEIGHTS,
            f"{counted(len(idle), 'module changes', 'modules change')} nothing: {listed(idle)}.",
        )
    partial = [name for name, size in sizes.items() if MANY_ZERO_ROWS <= size.zero_rows / size.rows < 1]
    if partial:
        most = max(sizes[name].zero_rows / sizes[name].rows for name in partial)
        cause = f"In {counted(len(partial), 'module')} rows of B are zero, up to {most:.0%} of them: {listed(partial)}."
        route = "One part of a sharded training (FSDP) is saved so: if it was one, gather the weights and save again."
        yield notice("zero_rows", WEIGHTS, cause, route)
