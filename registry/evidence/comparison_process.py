"""Child process that measures the distance between the weight updates of two adapters.

    python -m registry.evidence.comparison_process ONE OTHER OUT

For a module with updates U = s B A and V = t D C it writes |U|, |V| and 1 - <U, V> / (|U| |V|), with Frobenius norms
and inner product. <U, V> = s t sum((B'D) * (A C')), so the updates themselves, as large as the base model, are never
built.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from registry.adapter_files.finite_check import in_order
from registry.adapter_files.manifest import scale_of
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import PREFIX, WEIGHTS

Matrix = NDArray[np.float32]
Half = tuple[Matrix, Matrix, float]


def read_modules(folder: Path) -> dict[str, Half]:
    """Read the adapter in the folder: module name -> (A of shape (r, in), B of shape (out, r), scale)."""
    config = json.loads((folder / CONFIG).read_bytes())
    tensors = read_tensors(folder / WEIGHTS)
    modules = sorted({name.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for name in tensors})
    pairs = {module: [tensors[f"{PREFIX}{module}.lora_{side}.weight"] for side in "AB"] for module in modules}
    return {module: (a, b, scale_of(config, module, a.shape[0])) for module, (a, b) in pairs.items()}


def read_tensors(path: Path) -> dict[str, Matrix]:
    """Read every tensor of the safetensors file as a float32 array, by name."""
    with path.open("rb") as stream:
        return {
            name: as_float(stream.read(tensor["data_offsets"][1] - tensor["data_offsets"][0]), tensor["dtype"]).reshape(
                tensor["shape"]
            )
            for name, tensor in in_order(stream)
        }


def as_float(raw: bytes, dtype: str) -> Matrix:
    """Convert little-endian BF16, F32 or F16 bytes to a flat float32 array.

    A bfloat16 value is the upper half of a float32.
    """
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, {"F32": "<f4", "F16": "<f2"}[dtype]).astype(np.float32)


def product(one: Half, other: Half) -> float:
    """Return the Frobenius inner product <U, V> of two updates, in double precision."""
    (a, b, s), (c, d, t) = one, other
    return s * t * float(((b.T.astype(np.float64) @ d) * (a.astype(np.float64) @ c.T)).sum())


def distances(one: dict[str, Half], other: dict[str, Half]) -> list[dict[str, object]]:
    """Return rows {module, norm_from, norm_to, cosine_distance}, one for each module that either side adapts.

    A side without an update there has the norm 0; the distance is then None.
    """
    rows = []
    for module in sorted(one.keys() | other.keys()):
        norms = [
            math.sqrt(max(0.0, product(side[module], side[module]))) if module in side else 0.0 for side in (one, other)
        ]
        distance = None
        if all(norms):
            distance = 1 - product(one[module], other[module]) / (norms[0] * norms[1])
        rows.append({"module": module, "norm_from": norms[0], "norm_to": norms[1], "cosine_distance": distance})
    return rows


if __name__ == "__main__":
    rows = distances(read_modules(Path(sys.argv[1])), read_modules(Path(sys.argv[2])))
    Path(sys.argv[3]).write_text(json.dumps(rows))
