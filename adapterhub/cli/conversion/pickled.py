"""Child process that turns PyTorch's pickled weights into safetensors; only tensors are unpickled.

python -m adapterhub.cli.conversion.pickled IN OUT
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file


def main(source: str, target: str) -> int:
    """Convert the PyTorch file `source` to the safetensors file `target`; return 0.

    Returns 1 and prints the reason on stderr if the file is damaged or holds anything but named tensors.
    """
    try:
        weights = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a foreign file; whatever is wrong with it is its sender's to know
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sys.stderr.write(f"it holds something else than tensors, or is damaged: {lines[0]}\n")
        return 1
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        sys.stderr.write("it holds no table of named tensors\n")
        return 1
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
