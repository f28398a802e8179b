"""Conversion of weight changes to a LoRA, so that methods that train other parameters publish a plain LoRA, too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.recipes.output.adapter_output import write_folder
from training.recipes.rank_plan import is_target
from training.recipes.run_file import Run


@dataclass(frozen=True)
class Factors:
    """A module's weight change as the product `b @ a`: a of shape (rank, in), b of shape (out, rank), float32."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Return the rank: the number of rows of `a`."""
        return self.a.shape[0]


def best_factors(change: Tensor, rank: int) -> Factors:
    """Return balanced factors of the nearest matrix of that rank in the Frobenius norm (Eckart and Young, 1936)."""
    u, s, vh = torch.linalg.svd(change.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return Factors((root[:, None] * vh[:rank]).contiguous(), (u[:, :rank] * root).contiguous())


def export_rank(run: Run, module: str) -> int:
    """Return the rank to which a module is converted.

    It is `export_rank` if that is above 0, else the module's rank in the run.
    """
    return run.hyperparameters.export_rank or run.rank_pattern.get("^" + re.escape(module), run.r)


def nearest(changes: Mapping[str, Tensor], run: Run) -> tuple[dict[str, Factors], float]:
    """Return the nearest factors of each module's change, and their relative error over all modules together.

    The error is norm(change - b a) / norm(change), in the Frobenius norm; 0 if nothing changed.
    """
    factors, missed, whole = {}, 0.0, 0.0
    for module, change in changes.items():
        best = best_factors(change, min(export_rank(run, module), *change.shape))
        factors[module] = Factors(best.a.cpu(), best.b.cpu())
        missed += float((change.float() - best.b @ best.a).square().sum(dtype=torch.float64))
        whole += float(change.float().square().sum(dtype=torch.float64))
    return factors, (missed / whole) ** 0.5 if whole else 0.0


def changes_of(run: Run, trained: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the new minus the old weight of every target module, by module name, in float32.

    `trained` and `base` hold weights by parameter name.
    """
    names = [name.removesuffix(".weight") for name in trained if name.endswith(".weight")]
    return {
        name: trained[f"{name}.weight"].float() - base[f"{name}.weight"].to(trained[f"{name}.weight"].device).float()
        for name in names
        if is_target(name, run.target_modules)
    }


def save_factors(factors: Mapping[str, Factors], run: Run) -> int:
    """Write the factors as a plain LoRA to OUTPUT/adapter, with the run's alpha / r everywhere.

    Returns the number of its parameters.
    """
    scale = run.lora_alpha / run.r
    tensors = {}
    for module, pair in factors.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = pair.a.float().cpu().contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = (pair.b.float().cpu() / scale).contiguous()
    config = lora_config({module: pair.rank for module, pair in factors.items()}, scale, run)

    def write(part: Any) -> None:
        config.save_pretrained(str(part))
        save_file(tensors, part / "adapter_model.safetensors", metadata={"format": "pt"})

    write_folder(run.output / "adapter", write, {"target_modules": run.target_modules, "inference_mode": True})
    return sum(tensor.numel() for tensor in tensors.values())


def lora_config(ranks: Mapping[str, int], scale: float, run: Run) -> Any:
    """Return PEFT's configuration of a plain LoRA with these ranks by module and alpha / r = `scale` everywhere.

    Base and target modules are the run's. `ranks` must have every target module: one that it lacks would get the
    highest rank.
    """
    from peft import LoraConfig

    most = max(ranks.values())
    others = {"^" + re.escape(module): rank for module, rank in ranks.items() if rank != most}
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=run.base_model_name,
        r=most,
        lora_alpha=scale * most,  # type: ignore[arg-type]  # a scale need not be whole
        rank_pattern=others,
        alpha_pattern={module: scale * rank for module, rank in others.items()},
        target_modules=run.target_modules,
    )
