"""Adapters that PEFT computes and engines do not: which ones they are, and a safe configuration to open them. Pure.

They are stored as versions that are never served, and can be reduced to a plain LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from registry.adapter_files.base_identity import BaseFacts
from registry.adapter_files.findings import Finding, faults_of, listed
from registry.adapter_files.inspection import Inspection
from registry.adapter_files.scales import Scales
from registry.adapter_files.served_config import CONFIG, anchored
from registry.adapter_files.tensor_names import GROUPS, PREFIX, WRAPPERS

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
# Parts of names of tensors that are a module's own, beside or in place of an adapter's.
WHOLE = {"modules_to_save", "token_adapter", "base_layer"}
# The copy of a whole module as it is called while PEFT trains it: `lm_head.modules_to_save.default.weight`.
TRAINED_COPY = re.compile(r"\.modules_to_save\.[^.]+(?=\.(?:weight|bias)$)")
# Parts of the names of an adapter's own tensors, and of an embedding below it, which PEFT saves with them.
OF_ADAPTER = re.compile(r"\.(?:lora_|hada_|lokr_|ia3_|vera_|token_adapter\.|base_layer\.)|(?:^|\.)vera_")
NAME = re.compile(r"[A-Za-z]\w*(?:\.\w+)*", re.ASCII)
MOST_RANK = 4096


def is_reducible(inspection: Inspection) -> bool:
    """Return True if the adapter has faults and all of them are about what PEFT computes and engines do not serve."""
    faults = faults_of(inspection.findings)
    return bool(faults) and all(is_of_peft(finding, inspection.config) for finding in faults)


def is_of_peft(finding: Finding, config: Config) -> bool:
    """Return True if the finding is about something that PEFT computes and engines do not serve.

    That is another method of PEFT (LoHa, LoKr, IA3, VeRA), or what CODES and FIELDS list, such as DoRA or a bias.
    """
    if finding.code == "other_method":
        return str(config.get("peft_type")) in METHODS
    return finding.code in CODES or (finding.code == "bad_field" and finding.field in FIELDS)


def safe_config(inspection: Inspection, tensors: list[str], base: BaseFacts, parameters: Iterable[str] = ()) -> Config:
    """Return a configuration with which PEFT can open the files safely: only checked values, and modules by full names.

    `tensors` are the names of the file's tensors, `parameters` those of the base model's. Raises ValueError for a value
    that is not permitted, and for whole modules that PEFT would not open, as `whole_modules` does.
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
        "modules_to_save": whole_modules(config, tensors, parameters) or None,
        "trainable_token_indices": token_indices(config.get("trainable_token_indices"), base),
        **shared(modules),
    }


def saved_name(tensor: str, parameters: Iterable[str] = ()) -> str:
    """Return the name under which PEFT saves a tensor of a whole module: `base_model.model.lm_head.weight`.

    `parameters` are the names of the base model's tensors. The tensor is such a module's if its name is one of them
    apart from `base_model.model.`, the parts that wrappers add, and `modules_to_save.NAME`; a name with `base_layer.`
    is not. Any other name only loses `modules_to_save.NAME`.
    """
    plain = TRAINED_COPY.sub("", tensor)
    own = WRAPPERS.sub("", plain).removeprefix(PREFIX)
    return f"{PREFIX}{own}" if own in parameters and "base_layer." not in plain else plain


def whole_modules(config: Config, tensors: Iterable[str], parameters: Iterable[str]) -> list[str]:
    """Return the full names of the base model's modules that the file holds whole, as PEFT is to open them.

    `tensors` are the names of the file's tensors, `parameters` those of the base model's. Raises ValueError for tensors
    that PEFT would not read, and for parameters that `modules_to_save` means and the file lacks: PEFT does not open it.
    """
    known = set(parameters)
    own = {tensor.removeprefix(PREFIX) for tensor in tensors if not OF_ADAPTER.search(tensor)}
    named = names_of(config.get("modules_to_save"), "modules_to_save")
    if unread := sorted(own - known):
        raise ValueError(f"{listed(unread, 2)} is no tensor of this base model, and PEFT would not read it: remove it")
    modules = {name.removesuffix(".weight") for name in own if name.endswith(".weight")}
    wanted = {name for name in known if name.rpartition(".")[0] in modules or is_saved(name, named)}
    if missing := sorted(wanted - own):
        raise ValueError(
            f"modules_to_save means {listed(missing, 2)}, which the file lacks: save the whole adapter, or write into "
            "modules_to_save the full names of those modules alone that the file has"
        )
    return sorted(modules)


def is_saved(parameter: str, names: Iterable[str]) -> bool:
    """Return True if PEFT saves the parameter for one of the names in `modules_to_save`.

    It does if the full name of a module that the parameter is in ends in one of them.
    """
    parts = parameter.split(".")
    modules = [".".join(parts[:end]) for end in range(1, len(parts))]
    return any(module.endswith(name) for module in modules for name in names)


def shared(modules: list[str]) -> Config:
    """Return the fields of every method's configuration: task type, inference mode, and `modules` as the targets."""
    return {"task_type": "CAUSAL_LM", "target_modules": modules, "inference_mode": True}


def modules_in(tensors: list[str], base: BaseFacts) -> set[str]:
    """Return the base model's modules, by full names, for which `tensors` has an adapter's tensors.

    Tensors of whole modules, such as a trained lm_head, do not count.
    """
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
            is_whole = parts[end:] in (["weight"], ["bias"]) or WHOLE & set(parts)
            if ".".join(parts[:end]) in known and not is_whole:
                modules.add(".".join(parts[:end]))
    return modules


def method_config(config: Config, modules: list[str]) -> Config:
    """Return the checked fields of a configuration of LoHa, LoKr, IA3 or VeRA, with patterns by full module names.

    `modules` are the full names of the adapted modules. Raises ValueError for a value that is not permitted, and for
    whole modules, biases or `fan_in_fan_out`, which must be off.
    """
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
    """Return `rank_pattern` and `alpha_pattern` of the configuration, None where one is missing.

    Raises ValueError if one is not an object of names and numbers.
    """
    for name in ("rank_pattern", "alpha_pattern"):
        values = config.get(name) or {}
        if not isinstance(values, dict) or not all(type(value) in (int, float) for value in values.values()):
            raise ValueError(f"{name} is no object of module names and numbers")
    return {name: config.get(name) for name in ("rank_pattern", "alpha_pattern")}


def names_of(value: Any, field: str) -> list[str]:
    """Return the value as a list of module names: one name becomes a list, None an empty one.

    Raises ValueError for anything else; `field` is the name in its message.
    """
    names = list(value) if isinstance(value, list) else ([] if value is None else [value])
    if not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise ValueError(f"{field} is no list of module names")
    return names


def token_indices(value: Any, base: BaseFacts) -> Any:
    """Return the trained rows of the embedding as given, a list or lists by module; None if there are none.

    Raises ValueError for rows that the vocabulary does not have.
    """
    if value in (None, [], {}):
        return None
    lists = list(value.values()) if isinstance(value, dict) else [value]
    names_of(list(value) if isinstance(value, dict) else [], "trainable_token_indices")
    for rows in lists:
        if not isinstance(rows, list) or not all(type(row) is int and 0 <= row < base.vocabulary for row in rows):
            raise ValueError("trainable_token_indices are no rows of the vocabulary")
    return value
