"""Adapters that PEFT computes and engines do not: which those are, and a configuration that is safe to open. Pure.

They are kept as versions that are never served, and can be reduced to a plain LoRA.
"""

from __future__ import annotations

import re
from typing import Any

from registry.adapter_files.base_identity import BaseFacts
from registry.adapter_files.findings import Finding, faults_of
from registry.adapter_files.inspection import Inspection
from registry.adapter_files.scales import Scales
from registry.adapter_files.served_config import CONFIG, anchored
from registry.adapter_files.tensor_names import GROUPS

Config = dict[str, Any]
# Faults of tensors that are no low-rank matrices of linear modules, but that PEFT computes.
CODES = {"dora", "output_embedding", "input_embedding", "whole_modules", "token_rows", "bias", "unequal_scales"}
OF_PEFT = ("use_dora", "modules_to_save", "trainable_token_indices", "bias", "lora_bias")
FIELDS = {f"{CONFIG}.{name}" for name in OF_PEFT}
# Method -> the fields that PEFT reads beside its targets and ranks, with the type of each.
METHODS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "LOHA": {"r": int, "alpha": (int, float)},
    "LOKR": {"r": int, "alpha": (int, float), "decompose_both": bool, "decompose_factor": int},
    "IA3": {},
    "VERA": {"r": int, "projection_prng_key": int, "save_projection": bool, "d_initial": float},
}
NAME = re.compile(r"[A-Za-z]\w*(?:\.\w+)*", re.ASCII)
MOST_RANK = 4096


def is_reducible(inspection: Inspection) -> bool:
    """Return True if nothing stands against the adapter but what engines do not serve and PEFT computes."""
    faults = faults_of(inspection.findings)
    return bool(faults) and all(is_of_peft(finding, inspection.config) for finding in faults)


def is_of_peft(finding: Finding, config: Config) -> bool:
    """Return True if the finding is about something that PEFT computes and engines do not.

    That is another method of PEFT (LoHa, LoKr, IA3, VeRA), or what CODES and FIELDS list, such as DoRA or a bias.
    """
    if finding.code == "other_method":
        return str(config.get("peft_type")) in METHODS
    return finding.code in CODES or (finding.code == "bad_field" and finding.field in FIELDS)


def safe_config(inspection: Inspection, tensors: list[str], base: BaseFacts) -> Config:
    """Return a configuration with which PEFT opens the files: checked values alone, and modules by their names.

    Raises ValueError for a value that cannot be taken over.
    """
    config = inspection.config
    modules = sorted(modules_in(tensors, base))
    if str(config.get("peft_type")) in METHODS:
        return {**method_config(config, modules), "peft_type": config["peft_type"], **shared(modules)}
    scales, ranks = Scales(config), dict(inspection.ranks)
    return {
        "peft_type": "LORA",
        "r": scales.rank,
        "lora_alpha": scales.alpha,
        "rank_pattern": anchored({name: scales.rank_of(name) for name in modules if name not in ranks} | ranks),
        "alpha_pattern": anchored({name: scales.alpha_pattern.value(name, scales.alpha) for name in modules}),
        "use_rslora": scales.is_stabilised,
        "use_dora": config.get("use_dora") is True,
        "lora_bias": config.get("lora_bias") is True,
        "bias": config["bias"] if config.get("bias") in ("all", "lora_only") else "none",
        "modules_to_save": names_of(config.get("modules_to_save"), "modules_to_save") or None,
        "trainable_token_indices": token_indices(config.get("trainable_token_indices"), base),
        **shared(modules),
    }


def shared(modules: list[str]) -> Config:
    """Return the fields that every method has."""
    return {"task_type": "CAUSAL_LM", "target_modules": modules, "inference_mode": True}


def modules_in(tensors: list[str], base: BaseFacts) -> set[str]:
    """Return the modules of the base model that have tensors of an adapter; whole modules are not among them."""
    known = {
        f"model.layers.{layer}.{GROUPS[kind]}.{kind}"
        for layer in range(base.layers)
        for kind in base.shapes
        if kind in GROUPS
    }
    known |= {"lm_head", "model.embed_tokens"}
    modules = set()
    for tensor in tensors:
        parts = tensor.removeprefix("base_model.model.").split(".")
        for end in range(len(parts) - 1, 0, -1):
            is_whole = parts[end:] in (["weight"], ["bias"]) or "modules_to_save" in parts or "token_adapter" in parts
            if ".".join(parts[:end]) in known and not is_whole:
                modules.add(".".join(parts[:end]))
    return modules


def method_config(config: Config, modules: list[str]) -> Config:
    """Return the fields of another method than LoRA. Raises ValueError."""
    for name in ("modules_to_save", "fan_in_fan_out", "bias"):
        if config.get(name) not in (None, False, "none", []):
            raise ValueError(f"{name} is {config[name]!r}")
    taken = {}
    for name, kind in METHODS[config["peft_type"]].items():
        if config.get(name) is not None:
            if not isinstance(config[name], kind) or (name == "r" and not 1 <= config[name] <= MOST_RANK):
                raise ValueError(f"{name} is {config[name]!r}")
            taken[name] = config[name]
    if config["peft_type"] == "IA3":
        kinds = names_of(config.get("feedforward_modules"), "feedforward_modules")
        taken["feedforward_modules"] = [name for name in modules if name.endswith(tuple(f".{kind}" for kind in kinds))]
    elif config["peft_type"] in ("LOHA", "LOKR"):
        # Its own default for alpha is 8, as LoRA's.
        scales = Scales({"r": config.get("r", 8), "lora_alpha": config.get("alpha", 8)} | patterns(config))
        taken["rank_pattern"] = anchored({name: scales.rank_of(name) for name in modules})
        taken["alpha_pattern"] = anchored({name: scales.alpha_pattern.value(name, scales.alpha) for name in modules})
    return taken


def patterns(config: Config) -> Config:
    """Return the patterns of ranks and alphas. Raises ValueError for one that is no object of numbers."""
    for name in ("rank_pattern", "alpha_pattern"):
        values = config.get(name) or {}
        if not isinstance(values, dict) or not all(type(value) in (int, float) for value in values.values()):
            raise ValueError(f"{name} is no object of module names and numbers")
    return {name: config.get(name) for name in ("rank_pattern", "alpha_pattern")}


def names_of(value: Any, field: str) -> list[str]:
    """Return a list of module names. Raises ValueError for anything else."""
    names = list(value) if isinstance(value, list) else ([] if value is None else [value])
    if not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise ValueError(f"{field} is no list of module names")
    return names


def token_indices(value: Any, base: BaseFacts) -> Any:
    """Return rows of the embedding that were trained. Raises ValueError for others than the vocabulary has."""
    if value in (None, [], {}):
        return None
    lists = list(value.values()) if isinstance(value, dict) else [value]
    names_of(list(value) if isinstance(value, dict) else [], "trainable_token_indices")
    for rows in lists:
        if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < base.vocabulary for row in rows):
            raise ValueError("trainable_token_indices are no rows of the vocabulary")
    return value
