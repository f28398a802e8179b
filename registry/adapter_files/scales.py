"""The rank and the effective scale (alpha / r) of each module, as PEFT computes them. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from adapterhub.core.counts import counted
from registry.adapter_files.findings import Finding, fault, notice, printable
from registry.adapter_files.pattern_keys import PatternKeys
from registry.adapter_files.served_config import CONFIG, PEFT_DEFAULT

Config = dict[str, Any]


class Scales:
    """The ranks and alphas that a configuration declares, with PEFT's defaults.

    Raises ValueError if RE2 cannot run a key of its patterns.
    """

    def __init__(self, config: Config) -> None:
        self.rank, self.alpha = config.get("r", PEFT_DEFAULT), config.get("lora_alpha", PEFT_DEFAULT)
        self.rank_pattern = PatternKeys(config.get("rank_pattern"))
        self.alpha_pattern = PatternKeys(config.get("alpha_pattern"))
        self.is_stabilised = bool(config.get("use_rslora"))

    def rank_of(self, module: str) -> Any:
        """Return the rank that the configuration declares for the module."""
        return self.rank_pattern.value(module, self.rank)

    def of(self, module: str, rank: int) -> float:
        """Return the module's scale at this rank: alpha / r, or alpha / sqrt(r) for rsLoRA."""
        alpha: float = self.alpha_pattern.value(module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_stabilised else rank)


def scale_findings(config: Config, ranks: dict[str, int], *, any_scale: bool) -> Iterator[Finding]:
    """Yield faults for ranks that differ from the file's and for unequal scales, and a notice of keys without a match.

    `ranks` are the file's. Unequal scales are allowed with `any_scale`; otherwise all modules must have one scale, so
    that engines which ignore the patterns still scale correctly. Nothing is yielded if a value is not a number.
    """
    try:
        scales = Scales(config)
        values = [scales.of(module, rank) for module, rank in ranks.items()]
    except (ValueError, TypeError, AttributeError):
        return  # the configuration's own faults say why
    if wrong := {module: rank for module, rank in ranks.items() if scales.rank_of(module) != rank}:
        yield other_ranks(scales, wrong)
    if not any_scale and not all(math.isclose(value, values[0], rel_tol=1e-6) for value in values):
        yield fault(
            "unequal_scales",
            f"{CONFIG}.alpha_pattern",
            "The modules have different effective scales (alpha / r).",
            "Upload with fold=true (`adapterhub push --fold`) to fold them into B, which changes no answer.",
        )
    for field, pattern in (("rank_pattern", scales.rank_pattern), ("alpha_pattern", scales.alpha_pattern)):
        if unused := pattern.unused(list(ranks)):
            cause = f"{len(unused)} keys match no module of the file, as in PEFT: {printable(unused[0])!r}."
            yield notice("unused_keys", f"{CONFIG}.{field}", cause)


def other_ranks(scales: Scales, wrong: dict[str, int]) -> Finding:
    """Return the fault of modules whose rank in the file is not the declared one; it names the field that declares it.

    `wrong` maps these modules to their rank in the file.
    """
    module, rank = next(iter(wrong.items()))
    by_pattern = scales.rank_pattern.place(module) is not None
    field = f"{CONFIG}.{'rank_pattern' if by_pattern else 'r'}"
    cause = f"{module} has rank {rank}, but the configuration says {scales.rank_of(module)}"
    rest = f"; {counted(len(wrong) - 1, 'more module differs', 'more modules differ')}." if len(wrong) > 1 else "."
    return fault("other_rank", field, f"{cause}{rest}", "Name the file's rank in r or rank_pattern.")
