"""Conversions of other tools' adapter layouts to PEFT's: pure functions from an adapter to an adapter with notes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adapterhub.cli.conversion.raw_tensors import EIGHT_BITS, RawTensor, Tensors
from adapterhub.cli.exit_codes import Ended, Exit
from adapterhub.core.counts import counted

PREFIX = "base_model.model."
WRAPPERS = re.compile(r"(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
# A low-rank matrix in PEFT's manner: anything, the module from `layers.` on, the side, perhaps the adapter's name.
LORA = re.compile(r"(?P<before>.*?)(?P<module>layers\.\d+\.[\w.]+?)\.lora_(?P<side>[AB])(?:\.(?!weight)\w+)?\.weight")
BEFORE = {"base_model", "model", "module", "language_model", ""}
TORCHTUNE = re.compile(r"layers\.(?P<layer>\d+)\.(?P<place>attn|mlp)\.(?P<kind>\w+)\.lora_(?P<side>[ab])\.weight")
TORCHTUNE_KINDS = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "output_proj": "self_attn.o_proj",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
# `m` is the magnitude of MLX's DoRA, of shape (out,), as in PEFT.
MLX = re.compile(r"(?P<module>[\w.]+)\.(?:lora_(?P<side>[ab])|m)")
ADALORA = re.compile(r"(?P<module>[\w.]+)\.lora_(?P<side>[ABE])(?:\.\w+)?")
# Names of trainers of image models, with dots (diffusers) or underlines (kohya) in the module's name.
KOHYA = re.compile(r"(?P<module>[\w.]+?)\.(?:lora_|lora\.)(?P<side>down|up)\.weight|(?P<scaled>[\w.]+)\.alpha")
UNDERLINED = re.compile(r".*?(?:model_)?layers_(?P<layer>\d+)_(?P<group>self_attn|mlp)_(?P<kind>\w+_proj)")
# PEFT divides by the number of ranks and this, so that a module without one is not divided by zero.
ADALORA_EPSILON = 1e-5


@dataclass(frozen=True)
class Adapter:
    """An adapter on its way to PEFT's layout; `notes` are sentences on what was changed."""

    tensors: Tensors
    config: dict[str, Any]
    notes: tuple[str, ...] = ()
    is_pickle: bool = False

    def noted(self, text: str, tensors: Tensors, config: dict[str, Any] | None = None) -> Adapter:
        """Return the adapter with other tensors, one more note and, if given, another configuration."""
        return replace(self, tensors=tensors, config=config or self.config, notes=(*self.notes, text))


def from_mlx(adapter: Adapter) -> Adapter:
    """Convert an adapter of MLX; return any other unchanged.

    A (in, r) and B (r, out) are transposed, and the scale becomes alpha = scale * rank. Raises Ended for an adapter of
    MLX that is no LoRA or DoRA, or whose configuration lacks the rank or the scale.
    """
    own = adapter.config.get("lora_parameters")
    if not isinstance(own, dict) or "peft_type" in adapter.config:
        return adapter
    matches = {name: match for name in adapter.tensors if (match := MLX.fullmatch(name))}
    if others := sorted(adapter.tensors.keys() - matches.keys()):
        kind = adapter.config.get("fine_tune_type", "lora")
        route = "Merge it (`mlx_lm.fuse`) and register the result as a base model."
        raise Ended(f"MLX ({kind}): {others[0]} is no matrix of a LoRA. {route}", Exit.USAGE)
    for field, kind in (("rank", int), ("scale", (int, float))):
        if not isinstance(own.get(field), kind) or own[field] <= 0:
            raise Ended(f"MLX: lora_parameters.{field} must be a positive number.", Exit.USAGE)
    tensors, modules = {}, set()
    for name, match in matches.items():
        modules.add(match["module"].rsplit(".", 1)[-1])
        if match["side"]:
            side = match["side"].upper()
            tensors[f"{PREFIX}{match['module']}.lora_{side}.weight"] = adapter.tensors[name].transposed()
        else:
            tensors[f"{PREFIX}{match['module']}.lora_magnitude_vector"] = adapter.tensors[name]
    rank = int(own["rank"])
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.config.get("model"),
        "r": rank,
        "lora_alpha": float(own["scale"]) * rank,
        "target_modules": sorted(modules),
        "layers_to_transform": sorted(
            {int(layer) for name in tensors for layer in re.findall(r"layers\.(\d+)\.", name)}
        ),
        "use_dora": adapter.config.get("fine_tune_type") == "dora",
    }
    count = sum(match["side"] is not None for match in matches.values())
    text = f"MLX: {count} matrices transposed; scale {own['scale']} became lora_alpha {config['lora_alpha']:g}."
    return adapter.noted(text, tensors, config)


def from_torchtune(adapter: Adapter) -> Adapter:
    """Rename the modules of an adapter of torchtune; return any other unchanged.

    Raises Ended for queries and keys in its .pt files, whose rows are in another order; in its safetensors files they
    are in PEFT's.
    """
    matches = {name: match for name in adapter.tensors if (match := TORCHTUNE.fullmatch(name))}
    known = all(match["kind"] in TORCHTUNE_KINDS for match in matches.values())
    if not matches or not known or len(matches) < len(adapter.tensors):
        return adapter
    if adapter.is_pickle and any(match["kind"] in ("q_proj", "k_proj") for match in matches.values()):
        raise Ended(
            "torchtune's own .pt has queries and keys in another order: send the adapter_model.safetensors that its "
            "checkpointer writes beside it.",
            Exit.USAGE,
        )
    tensors = {}
    for name, match in matches.items():
        module = f"model.layers.{match['layer']}.{TORCHTUNE_KINDS[match['kind']]}"
        tensors[f"{PREFIX}{module}.lora_{match['side'].upper()}.weight"] = adapter.tensors[name]
    return adapter.noted(f"torchtune: {len(tensors)} tensors renamed.", tensors)


def from_kohya(adapter: Adapter) -> Adapter:
    """Rename `down` and `up` to A and B; the alpha of each module becomes `lora_alpha` and `alpha_pattern`.

    Returns an adapter with other tensors unchanged. A module without an alpha gets its rank, which is a scale of 1.
    """
    matches = {name: match for name in adapter.tensors if (match := KOHYA.fullmatch(name))}
    if not matches or len(matches) < len(adapter.tensors) or not any(match["side"] for match in matches.values()):
        return adapter
    tensors, alphas, ranks = {}, {}, {}
    for name, match in matches.items():
        if match["side"]:
            side = "A" if match["side"] == "down" else "B"
            if side == "A":
                ranks[dotted(match["module"])] = adapter.tensors[name].shape[0]
            tensors[f"{PREFIX}{dotted(match['module'])}.lora_{side}.weight"] = adapter.tensors[name]
        else:
            alphas[dotted(match["scaled"])] = float(adapter.tensors[name].as_float32().reshape(-1)[0])
    config = {"peft_type": "LORA", **adapter.config}
    config["r"], config["rank_pattern"] = common_and_others(ranks)
    # Without an alpha these trainers scale by 1.
    config["lora_alpha"], config["alpha_pattern"] = common_and_others({**ranks, **alphas})
    return adapter.noted(f"{len(tensors)} tensors named down and up became A and B.", tensors, config)


def common_and_others(values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the most frequent value, and a pattern (regular expression: value) of the modules that have another."""
    every = list(values.values())
    common = max(sorted(set(every)), key=every.count)
    return common, {"^" + re.escape(module): value for module, value in values.items() if value != common}


def dotted(module: str) -> str:
    """Return a module's name with dots, such as `model.layers.3.self_attn.q_proj`; an unknown form is unchanged."""
    match = UNDERLINED.fullmatch(module)
    return f"model.layers.{match['layer']}.{match['group']}.{match['kind']}" if match else module


def from_tinker(adapter: Adapter) -> Adapter:
    """Rename tinker's `unembed_tokens` to `lm_head`, the output embedding; return any other adapter unchanged."""
    named = [name for name in adapter.tensors if ".unembed_tokens." in name]
    if not named:
        return adapter
    tensors = {name.replace("model.unembed_tokens.", "lm_head."): value for name, value in adapter.tensors.items()}
    return adapter.noted("tinker: unembed_tokens is lm_head.", tensors)


def from_adalora(adapter: Adapter) -> Adapter:
    """Convert an AdaLoRA exactly; return any other adapter unchanged.

    Its update (lora_alpha / init_r) B diag(E) A is that of a LoRA with A' = diag(E) A. Rows that its rank pattern drops
    are left out, as in PEFT. Raises Ended for one without effect.
    """
    if adapter.config.get("peft_type") != "ADALORA":
        return adapter
    modules: dict[str, dict[str, RawTensor]] = {}
    for name, tensor in adapter.tensors.items():
        if match := ADALORA.fullmatch(name):
            modules.setdefault(match["module"], {})[match["side"]] = tensor
    tensors, ranks = {}, {}
    for module, sides in modules.items():
        a, b = adalora_factors(sides, pattern_rows(adapter.config.get("rank_pattern"), module))
        if a.shape[0]:
            ranks[module.removeprefix(PREFIX)] = a.shape[0]
            tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = (
                RawTensor("F32", a),
                RawTensor("F32", b),
            )
    if not ranks:
        raise Ended("Every singular value of this AdaLoRA is zero: it changes nothing.", Exit.USAGE)
    config = adalora_config(adapter.config, ranks)
    return adapter.noted(
        f"AdaLoRA: {counted(len(ranks), 'module')} became LoRA, their singular values in A.", tensors, config
    )


def pattern_rows(pattern: Any, module: str) -> np.ndarray | None:
    """Return a mask of the rows that AdaLoRA's rank pattern keeps of a module; None if it does not name the module."""
    for name, rows in pattern.items() if isinstance(pattern, dict) else ():
        if name.split(".lora_E")[0].removeprefix(PREFIX) == module.removeprefix(PREFIX) and isinstance(rows, list):
            return np.array(rows, bool)
    return None


def adalora_factors(sides: dict[str, RawTensor], rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 A' (rank, in) and B (out, rank) of a module, without the rows that change nothing."""
    a, b, values = sides["A"].as_float32(), sides["B"].as_float32(), sides["E"].as_float32().reshape(-1)
    chosen = values != 0
    if rows is not None and len(rows) == len(values):
        chosen &= rows
    return np.ascontiguousarray((a * values[:, None])[chosen]), np.ascontiguousarray(b[:, chosen])


def adalora_config(config: dict[str, Any], ranks: dict[str, int]) -> dict[str, Any]:
    """Return the configuration of the LoRA that an AdaLoRA became; the scale of each module is PEFT's for AdaLoRA."""
    start = config.get("init_r", 12)
    alpha = config.get("lora_alpha", 8)
    scale = (alpha if alpha > 0 else start) / (start + ADALORA_EPSILON)
    highest = max(ranks.values(), default=1)
    differing = {"^" + re.escape(name): rank for name, rank in ranks.items() if rank != highest}
    return {
        "peft_type": "LORA",
        **{name: config.get(name) for name in ("task_type", "base_model_name_or_path", "revision", "peft_version")},
        "r": highest,
        "lora_alpha": scale * highest,
        "rank_pattern": differing,
        "alpha_pattern": {key: scale * rank for key, rank in differing.items()},
        "target_modules": sorted(ranks),
    }


def with_pefts_names(adapter: Adapter) -> Adapter:
    """Rename tensors with another prefix, an adapter's name or a wrapper's parts in their names, as PEFT names them.

    Returns the adapter unchanged if there are none, or if two would get one name.
    """
    tensors, renamed = {}, 0
    for name, tensor in adapter.tensors.items():
        match = LORA.fullmatch(WRAPPERS.sub("", name))
        is_known = match and set(match["before"].rstrip(".").split(".")) <= BEFORE
        new = f"{PREFIX}model.{match['module']}.lora_{match['side']}.weight" if match and is_known else name
        renamed += new != name
        tensors[new] = tensor
    if not renamed or len(tensors) != len(adapter.tensors):
        return adapter
    return adapter.noted(f"{renamed} tensors renamed as PEFT names them.", tensors)


def with_served_types(adapter: Adapter) -> Adapter:
    """Convert float64 to float32, and 8-bit floats to float16, which holds each of them exactly; others stay."""
    others = [name for name, tensor in adapter.tensors.items() if tensor.dtype in ("F64", *EIGHT_BITS)]
    if not others:
        return adapter
    types = sorted({adapter.tensors[name].dtype for name in others})
    tensors = {name: served_type(tensor) for name, tensor in adapter.tensors.items()}
    return adapter.noted(f"{len(others)} tensors of {', '.join(types)} converted.", tensors)


def served_type(tensor: RawTensor) -> RawTensor:
    """Return the tensor in a type that engines load; one of an unknown type unchanged."""
    if tensor.dtype == "F64":
        return RawTensor("F32", tensor.as_float32())
    if tensor.dtype in EIGHT_BITS:
        return RawTensor("F16", tensor.as_float32().astype(np.float16))
    return tensor


STEPS: tuple[Callable[[Adapter], Adapter], ...] = (
    from_mlx,
    from_torchtune,
    from_kohya,
    from_tinker,
    from_adalora,
    with_pefts_names,
    with_served_types,
)


def converted(adapter: Adapter) -> Adapter:
    """Return the adapter in PEFT's layout, with a note for each change. Raises Ended if it cannot be converted."""
    for step in STEPS:
        adapter = step(adapter)
    return adapter
