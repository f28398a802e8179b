"""ORPO: learns from preference pairs and from the preferred answers themselves (arXiv 2403.07691).

Command: `python -m training.recipes.orpo RUN_JSON`. Trains a LoRA with TRL's ORPOTrainer, which is experimental in TRL:
another release may change it. It needs no reference model.
"""

from __future__ import annotations

import sys

from training.recipes import lora
from training.recipes.entrypoint import Cancel, RunEvents, program
from training.recipes.run_file import Run


def main(arguments: list[str]) -> int:
    """Run the recipe with the command line's run file; return the exit status."""
    return program(arguments, train)


def train(run: Run, events: RunEvents, cancel: Cancel) -> None:
    """Train the run with ORPO and write its output, a LoRA.

    Raises BadInput, also for a setting that preference methods do not support, and Diverged.
    """
    from training.recipes.preference.objectives import Orpo
    from training.recipes.preference.requirements import require_supported
    from training.recipes.training_loop import trainer
    from training.recipes.training_loop.autocast_fix import WithoutCasts

    require_supported(run)
    method = trainer.Method("orpo", lora.keep, adapt=lora.adapt, callbacks=[WithoutCasts()], objective=Orpo())
    trainer.train(run, events, cancel, method)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
