"""A rank analysis' start values put into an adapter before its first step."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from training.tars.boundary import BadInput

PREFIX = "base_model.model."


def set_start_values(model: nn.Module, path: Path) -> int:
    """Copy the first r rows of each module's start values, A (at least r, in), into its lora_A; returns how many.

    B stays zero, so the adapted model still is the base model. A module without start values keeps its random A.
    Raises BadInput when the file does not fit the adapter.
    """
    factors = {
        name.removeprefix(PREFIX).removesuffix(".lora_A.default.weight"): weight
        for name, weight in model.named_parameters()
        if name.endswith(".lora_A.default.weight")
    }
    try:
        with safe_open(path, "pt") as stored:
            known = sorted(set(stored.keys()) & set(factors))
            for name in known:
                copy_rows(stored.get_tensor(name), factors[name], name)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"init: {path} cannot be read: {error}") from None
    if not known:
        raise BadInput(f"init: {path.name} has start values for none of the adapted modules.")
    return len(known)


def copy_rows(values: torch.Tensor, weight: nn.Parameter, name: str) -> None:
    rank, width = weight.shape
    if values.ndim != 2 or values.shape[0] < rank or values.shape[1] != width:
        raise BadInput(f"init: {name} has values of shape {list(values.shape)}; rank {rank} needs {[rank, width]}.")
    with torch.no_grad():
        weight.copy_(values[:rank])
