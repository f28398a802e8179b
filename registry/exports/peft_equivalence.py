"""Check that an export computes the same as the stored adapter, with PEFT loading both.

Each module's update is compared on the same random inputs. The base model's weights are not needed: if the updates of
all modules are equal, the logits are equal on any base.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from registry.adapter_files.tensor_names import WEIGHTS

# Relative error of an update (Frobenius); bf16 keeps 8 bits of each factor.
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2}
SAMPLES = 8
PROMPT_TOKENS = 32

Updates = dict[str, torch.Tensor]


class ExportMismatch(ValueError):
    """Raised when an export would give answers other than the stored adapter's."""


def check_export(stored: Path, export: Path, base: Path, dtype: str) -> None:
    """Compare the updates that two adapters of a base model give for random inputs, within the tolerance of `dtype`.

    Raises ExportMismatch that names the first module which differs.
    """
    before, after = updates(stored, base), updates(export, base)
    if before.keys() != after.keys():
        raise ExportMismatch(f"the export adapts other modules: {sorted(before.keys() ^ after.keys())[0]}")
    for module, expected in before.items():
        error = float((after[module] - expected).norm() / expected.norm().clamp(min=1e-30))
        if not error <= TOLERANCES[dtype]:  # NaN too
            raise ExportMismatch(f"{module} differs from PEFT's by {error:.1e}, more than {TOLERANCES[dtype]}")


def check_merged(logits: torch.Tensor, merged: torch.Tensor, dtype: str) -> None:
    """Compare PEFT's logits with the merged model's, both (1, tokens, vocabulary), within the tolerance of `dtype`.

    Raises ExportMismatch if they differ.
    """
    error = float((merged - logits).float().norm() / logits.float().norm())
    if not error <= TOLERANCES[dtype]:
        raise ExportMismatch(f"the merged model's logits differ by {error:.1e}, more than {TOLERANCES[dtype]}")


def logits_of(model: Any) -> torch.Tensor:
    """Return the model's logits, (1, PROMPT_TOKENS, vocabulary), for a fixed sequence of random tokens."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, PROMPT_TOKENS), generator=random)
    with torch.inference_mode():
        return torch.as_tensor(model(input_ids=tokens).logits)


def updates(adapter: Path, base: Path) -> Updates:
    """Return what PEFT adds to each module's output for fixed random inputs: name -> (SAMPLES, out).

    Raises ExportMismatch if PEFT does not know a tensor of the adapter.
    """
    with torch.inference_mode():
        return {name: update(layer) for name, layer in opened(adapter, base).named_modules() if is_adapted(layer)}


def opened(adapter: Path, base: Path) -> Any:
    """Return a PEFT model with the adapter on a base model without weights (meta device).

    Only LoRA's matrices have values. Raises ExportMismatch for a tensor that PEFT does not know.
    """
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))  # type: ignore[no-untyped-call]
    model = get_peft_model(empty, LoraConfig.from_pretrained(str(adapter)), low_cpu_mem_usage=True)
    # PEFT's own loader would move the factors to the base layer's device, which has no memory here.
    factors = {
        name.replace(".weight", ".default.weight"): value for name, value in load_file(adapter / WEIGHTS).items()
    }
    if unknown := model.load_state_dict(factors, strict=False, assign=True).unexpected_keys:
        raise ExportMismatch(f"PEFT does not know {unknown[0]}")
    return model


def is_adapted(layer: Any) -> bool:
    """Return True for a layer that has a LoRA."""
    return isinstance(layer, LoraLayer) and bool(layer.lora_A)


def update(layer: Any) -> torch.Tensor:
    """Return what the layer's LoRA adds for fixed random inputs, (SAMPLES, out), in float32."""
    a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    inputs = torch.randn(SAMPLES, a.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(layer.scaling["default"] * (inputs @ a.T) @ b.T)
