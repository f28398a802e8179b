"""Compatibility of an adapter with each engine, with the reason if its output would differ from PEFT's.

No torch, no database. vLLM reads rank_pattern and alpha_pattern from 0.32 on; older versions scale every module by the
configuration's own alpha and r. So does SGLang, which also ignores rsLoRA and has one rank for each adapter in its
buffers. llama.cpp reads GGUF.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from registry.adapter_files.manifest import scale_of


class Engine(StrEnum):
    """The inference engines that AdapterHub can judge an adapter for."""

    VLLM = "vllm"
    VLLM_OLD = "vllm-old"
    SGLANG = "sglang"
    EMBEDDED = "embedded"
    LLAMA_CPP = "llama.cpp"


LABELS = {
    Engine.VLLM: "vLLM 0.32 or newer",
    Engine.VLLM_OLD: "vLLM before 0.32",
    Engine.SGLANG: "SGLang",
    Engine.EMBEDDED: "embedded engine",
    Engine.LLAMA_CPP: "llama.cpp",
}


class Outcome(StrEnum):
    """The outcome of judging an adapter for an engine: it serves as it is, only after an export, or not at all."""

    SERVES = "serves"
    SERVES_AFTER_EXPORT = "serves_after_export"
    CANNOT = "cannot"


@dataclass(frozen=True)
class Traits:
    """The properties of an adapter that decide which engines can run it.

    `ranks` and `scales` map module names to the rank and to the factor of B @ A. `own_scale` is the factor of modules
    that no pattern names. `base_digest` is "" if not known.
    """

    ranks: Mapping[str, int]
    scales: Mapping[str, float]
    own_scale: float
    base_digest: str = ""
    rank_stabilised: bool = False
    dora: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: Mapping[str, Any], ranks: Mapping[str, int], base_digest: str) -> Traits:
        """Build the traits from a PEFT configuration and the modules' ranks.

        `base_digest` is that of the base model, "" if not known. Raises Invalid if the two disagree on a rank, and
        ValueError for a pattern's key that RE2 cannot run.
        """
        stabilised = bool(config.get("use_rslora"))
        return cls(
            ranks=ranks,
            scales={module: scale_of(dict(config), module, own) for module, own in ranks.items()},
            own_scale=own_scale(config, stabilised),
            base_digest=base_digest,
            rank_stabilised=stabilised,
            dora=bool(config.get("use_dora")),
            bias=config.get("bias") or "none",
            modules_to_save=tuple(config.get("modules_to_save") or ()),
        )

    @property
    def max_rank(self) -> int:
        """Return the highest rank of any module."""
        return max(self.ranks.values())


@dataclass(frozen=True)
class Verdict:
    """The outcome of judging an adapter for one engine, with its reason in one sentence."""

    engine: Engine
    outcome: Outcome
    reason: str

    @property
    def label(self) -> str:
        """Return the engine's name as pages show it."""
        return LABELS[self.engine]


def own_scale(config: Mapping[str, Any], stabilised: bool) -> float:
    """Return the scale of modules that no pattern names, with PEFT's defaults; NaN if r or lora_alpha is not usable.

    `stabilised` is True for rsLoRA, which divides alpha by the square root of r.
    """
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        return math.nan
    return alpha / (math.sqrt(rank) if stabilised else rank)


def verdict(
    engine: Engine, traits: Traits, *, base_digest: str | None = None, max_lora_rank: int | None = None
) -> Verdict:
    """Decide whether replicas of this engine can serve the adapter: as it is, only after an export, or not at all.

    `base_digest` is the base model that they serve and `max_lora_rank` their highest rank; None skips the comparison.
    """
    if reason := hindrance(engine, traits, base_digest, max_lora_rank):
        return Verdict(engine, Outcome.CANNOT, reason)
    if reason := misreading(engine, traits):
        return Verdict(engine, Outcome.SERVES_AFTER_EXPORT, reason)
    return Verdict(engine, Outcome.SERVES, f"{LABELS[engine]} computes it as PEFT does.")


def verdicts(traits: Traits, *, base_digest: str | None = None, max_lora_rank: int | None = None) -> list[Verdict]:
    """Return the verdict of every engine on the adapter. The keywords are those of `verdict`."""
    return [verdict(engine, traits, base_digest=base_digest, max_lora_rank=max_lora_rank) for engine in Engine]


def hindrance(engine: Engine, traits: Traits, base_digest: str | None, max_lora_rank: int | None) -> str:
    """Return the reason why the engine cannot serve the adapter even after an export; "" if it can.

    Base model and rank are compared only if `base_digest` and `max_lora_rank` are given. The rank does not count for
    llama.cpp.
    """
    if base_digest is not None and traits.base_digest != base_digest:
        return "It was trained on another base model than the fleet serves."
    if traits.dora:
        return "It is a DoRA adapter: its magnitudes cannot be served beside the base model, only merged into it."
    if traits.bias != "none":
        return f"It trains biases (bias = {traits.bias}), which are not low-rank matrices: train with bias = none."
    if traits.modules_to_save:
        return f"It replaces whole modules ({', '.join(traits.modules_to_save)}): train without modules_to_save."
    if engine is not Engine.LLAMA_CPP and max_lora_rank is not None and traits.max_rank > max_lora_rank:
        return f"Its highest rank is {traits.max_rank}; the fleet serves at most {max_lora_rank}."
    return ""


def misreading(engine: Engine, traits: Traits) -> str:
    """Return the reason why the engine would reject or miscompute the files without an export; "" if it would not."""
    if engine is Engine.LLAMA_CPP:
        return "llama.cpp reads GGUF: take the portable export and convert it with convert_lora_to_gguf.py."
    if engine is Engine.VLLM_OLD and not scaled_alike(traits, traits.own_scale):
        return "vLLM before 0.32 ignores alpha_pattern and rank_pattern and would scale some modules wrongly."
    if engine is Engine.SGLANG:
        return misread_by_sglang(traits)
    return ""


def misread_by_sglang(traits: Traits) -> str:
    """Return the reason why SGLang would compute the adapter wrongly; "" if it would not."""
    if traits.rank_stabilised:
        return "SGLang scales by alpha / r and ignores rsLoRA: it would scale every module wrongly."
    if len(set(traits.ranks.values())) > 1:
        return "SGLang has one rank for each adapter and ignores rank_pattern; the portable export has one rank."
    if not scaled_alike(traits, traits.own_scale):
        return "SGLang ignores alpha_pattern and would scale some modules wrongly."
    return ""


def scaled_alike(traits: Traits, scale: float) -> bool:
    """Return True if every module has the scale `scale`."""
    return all(math.isclose(value, scale, rel_tol=1e-6) for value in traits.scales.values())
