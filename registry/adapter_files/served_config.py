"""Adapter configuration for replicas, generated from checked fields; an uploaded file is never served."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

CONFIG = "adapter_config.json"

Config = dict[str, Any]


def served_config(config: Config, ranks: dict[str, int], layers: int) -> Config:
    """Return a configuration with only the keys that PEFT and engines need, equal in effect to the checked `config`.

    `ranks` maps module names to ranks. The caller adds the base model's name.
    """
    alphas = {
        module: pattern_value(config.get("alpha_pattern") or {}, module, config.get("lora_alpha")) for module in ranks
    }
    rank = config.get("r") or max(ranks.values())
    alpha = config.get("lora_alpha") or next(iter(alphas.values()))
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
    """Anchor each key with ^, so that it matches one module; PEFT takes the first key that matches."""
    return {f"^{re.escape(module)}": value for module, value in pattern.items()}


def targets(ranks: dict[str, int], layers: int) -> list[str]:
    """Return module kinds if each kind is adapted in every layer, otherwise the full module names."""
    kinds = {module.rsplit(".", 1)[1] for module in ranks}
    return sorted(kinds) if len(ranks) == len(kinds) * layers else sorted(ranks)


def write_config(folder: Path, config: Config) -> None:
    """Overwrite the folder's configuration file; equal configurations give identical bytes."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def pattern_value(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """Return the value of the first key that names the module, as PEFT does, without running keys as regexes."""
    parts = module.split(".")
    names = [".".join(parts[start:]) for start in range(len(parts))]
    keys = ("^" + module, "^" + re.escape(module), *names, *map(re.escape, names))
    matching = [key for key in keys if key in pattern]
    return pattern[min(matching, key=list(pattern).index)] if matching else default
