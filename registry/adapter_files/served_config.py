"""Adapter configuration for replicas, generated from checked fields; an uploaded file is never served."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from registry.adapter_files.pattern_keys import PatternKeys

CONFIG = "adapter_config.json"
# PEFT's value of `r` and of `lora_alpha` where a configuration leaves them out.
PEFT_DEFAULT = 8

Config = dict[str, Any]


def served_config(config: Config, ranks: dict[str, int], layers: int) -> Config:
    """Return a configuration with only the keys that PEFT and engines need, equal in effect to the checked `config`.

    `ranks` maps full module names to ranks; `layers` is the base model's number of layers. The caller adds the base
    model's name.
    """
    own_rank, own_alpha = config.get("r", PEFT_DEFAULT), config.get("lora_alpha", PEFT_DEFAULT)
    pattern = PatternKeys(config.get("alpha_pattern"))
    alphas = {module: pattern.value(module, own_alpha) for module in ranks}
    pairs = {(rank, alphas[module]) for module, rank in ranks.items()}
    rank, alpha = (own_rank, own_alpha) if (own_rank, own_alpha) in pairs else max(pairs)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": anchored({module: own for module, own in ranks.items() if own != rank}),
        "alpha_pattern": anchored({module: own for module, own in alphas.items() if own != alpha}),
        "target_modules": targets(ranks, layers),
        "use_rslora": bool(config.get("use_rslora")),
        "use_dora": False,
        "bias": "none",
        "modules_to_save": None,
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def anchored(pattern: dict[str, Any]) -> dict[str, Any]:
    """Return the pattern with each key escaped and anchored by ^, so that it matches one module only."""
    return {f"^{re.escape(module)}": value for module, value in pattern.items()}


def targets(ranks: dict[str, int], layers: int) -> list[str]:
    """Return the module kinds (`q_proj`) if each is adapted in every layer, otherwise the full module names."""
    kinds = {module.rsplit(".", 1)[1] for module in ranks}
    return sorted(kinds) if len(ranks) == len(kinds) * layers else sorted(ranks)


def write_config(folder: Path, config: Config) -> None:
    """Overwrite the folder's adapter_config.json; equal configurations give identical bytes."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
