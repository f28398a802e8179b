"""Check of a run's ranks against its base model, before anything is trained. It imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from training.lm.error_reporting import BadInput
from training.recipes.run_file import Run


def check_plan(run: Run, linear_modules: Iterable[str]) -> None:
    """Check that each target and pattern names a linear module and that alpha / r is the same everywhere.

    Raises BadInput. PEFT ignores a key that matches nothing and takes the first that matches; engines that ignore the
    patterns would scale some modules wrongly. So keys are whole names ("^" and the escaped name), as training.tars
    writes them.
    """
    targets = {"^" + re.escape(name): name for name in linear_modules if is_target(name, run.target_modules)}
    last_names = {name.rsplit(".", 1)[-1] for name in targets.values()} | set(targets.values())
    if unknown := sorted(set(run.target_modules) - last_names):
        raise BadInput(f"target_modules: the base model has no linear module {unknown[0]}.")
    for field, pattern in (("rank_pattern", run.rank_pattern), ("alpha_pattern", run.alpha_pattern)):
        if unknown := sorted(set(pattern) - set(targets)):
            raise BadInput(f"{field}: {unknown[0]!r} is not ^ followed by the escaped full name of a target module.")
    check_scale(run, targets)


def is_target(name: str, target_modules: Iterable[str]) -> bool:
    """Return True if one of the targets is the module's name, or the end of it after a dot."""
    return any(name == target or name.endswith("." + target) for target in target_modules)


def check_scale(run: Run, keys: Iterable[str]) -> None:
    """Check that alpha / r of each module is the run's lora_alpha / r. Raises BadInput, also for rank 0.

    `keys` are the modules' keys in the run's patterns; a module without an entry has the run's own value.
    """
    scale = run.lora_alpha / run.r
    for key in keys:
        rank = run.rank_pattern.get(key, run.r)
        module_scale = run.alpha_pattern.get(key, run.lora_alpha) / rank if rank else 0.0
        if abs(module_scale - scale) > 1e-9 * scale:
            raise BadInput(
                f"alpha_pattern: alpha / r of {key} is {module_scale:g}, elsewhere {scale:g}; it must be one value."
            )
