"""Where A starts: at random, along the inputs' main directions (EVA, arXiv 2410.07170), or in a file of directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, get_peft_model, initialize_lora_eva_weights
from safetensors.torch import load_file
from torch import Tensor

from training.recipes.material import Material
from training.recipes.run_file import Run
from training.tars.boundary import BadInput
from training.tars.data import padded

EVA_BATCHES = 16


def started(model: Any, config: Any, run: Run, material: Material) -> tuple[Any, Any]:
    """(model, PEFT configuration or None when the model is wrapped already), for the trainer."""
    if run.init == "random":
        return model, config
    if run.init == "eva":
        return eva(model, config, material), None
    return from_file(get_peft_model(model, config), Path(run.init)), None


def eva(model: Any, config: Any, material: Material) -> Any:
    """Directions from the first batches; the ranks stay as planned (rho = 1), B starts at zero."""
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=1.0)
    wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(wrapped, dataloader=batches(material, next(model.parameters()).device))
    return wrapped


def batches(material: Material, device: torch.device) -> list[dict[str, Tensor]]:
    made = []
    for sequence in material.first_sequences(EVA_BATCHES * 4):
        ids, mask, _ = padded([sequence], 0)
        made.append(
            {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
        )
    return made


def from_file(model: Any, path: Path) -> Any:
    """`path` holds, by module, rows of shape (rank or more, in); B stays at zero, so nothing changes at step 0."""
    if not path.is_file():
        raise BadInput(f"init: {path} is no file of start values.")
    directions = load_file(path)
    weights = {name.removeprefix("base_model.model."): weight for name, weight in model.named_parameters()}
    for module, rows in directions.items():
        weight = weights.get(f"{module}.lora_A.default.weight")
        if weight is None:
            continue
        if rows.ndim != 2 or rows.shape[1] != weight.shape[1]:
            raise BadInput(f"init: {module} has rows of shape {list(rows.shape)}, not (rank, {weight.shape[1]}).")
        # A plan's look at a larger budget may ask for more rows than the file has: the rest stays random.
        count = min(len(rows), len(weight))
        weight.data[:count] = rows[:count].to(weight)
    return model
