"""Start values of A: random, along the inputs' principal directions (EVA, arXiv 2410.07170), or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import EvaConfig, get_peft_model, initialize_lora_eva_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor

from training.lm.error_reporting import BadInput
from training.lm.token_sequences import padded
from training.recipes.run_file import Run
from training.recipes.training_loop.batches import Material

EVA_BATCHES = 16


def started(model: Any, config: Any, run: Run, material: Material) -> tuple[Any, Any]:
    """Return the model and PEFT's configuration, with the run's start values for A.

    For `random` both are returned unchanged; otherwise the model is wrapped already and the configuration is None.
    Raises BadInput for a file that does not fit.
    """
    if run.init == "random":
        return model, config
    if run.init == "eva":
        return eva(model, config, material), None
    return from_file(get_peft_model(model, config), Path(run.init)), None


def eva(model: Any, config: Any, material: Material) -> Any:
    """Wrap the model in PEFT's LoRA and return it, with A along the inputs' principal directions and B zero.

    The directions are those of the first sequences of the material. The ranks stay as planned (rho = 1). `config` is
    changed.
    """
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=1.0)
    wrapped = get_peft_model(model, config, low_cpu_mem_usage=True)
    initialize_lora_eva_weights(wrapped, dataloader=batches(material, next(model.parameters()).device))
    return wrapped


def batches(material: Material, device: torch.device) -> list[dict[str, Tensor]]:
    """Return the first EVA_BATCHES * 4 sequences as model inputs on the device, one sequence per batch."""
    inputs = []
    for sequence in material.first_sequences(EVA_BATCHES * 4):
        ids, mask, _ = padded([sequence], 0)
        inputs.append(
            {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
        )
    return inputs


def from_file(model: Any, path: Path) -> Any:
    """Set each module's A to the first r rows of its values in the file; return the model, which is changed in place.

    The file holds at least (r, in) by module name. B stays zero, so the model is unchanged at step 0. A module that is
    not in the file stays random. Raises BadInput if the file cannot be read or does not fit the adapter.
    """
    weights = {name.removeprefix("base_model.model."): weight for name, weight in model.named_parameters()}
    try:
        with safe_open(path, "pt") as stored:
            known = sorted(name for name in stored.keys() if f"{name}.lora_A.default.weight" in weights)  # noqa: SIM118
            for name in known:
                copy_rows(stored.get_tensor(name), weights[f"{name}.lora_A.default.weight"], name)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"init: {path} cannot be read: {error}") from None
    if not known:
        raise BadInput(f"init: {path.name} has no start values for any of the adapted modules.")
    return model


def copy_rows(values: Tensor, weight: Any, name: str) -> None:
    """Copy the first r rows of the values into the weight (r, in).

    Raises BadInput that names the module if they do not fit.
    """
    rank, width = weight.shape
    if values.ndim != 2 or values.shape[0] < rank or values.shape[1] != width:
        raise BadInput(f"init: {name} has values of shape {list(values.shape)}; rank {rank} needs {[rank, width]}.")
    weight.data.copy_(values[:rank])
