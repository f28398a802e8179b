"""KTO: learns from answers that are marked good or bad (arXiv 2402.01306).

Command: `python -m training.recipes.kto RUN_JSON`. Trains a LoRA with TRL's KTOTrainer. A preference pair is read as
one good and one bad answer. The reference is the base model: the same model with the LoRA switched off.
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
    """Train the run with KTO and write its output, a LoRA.

    Raises BadInput, also for a setting that preference methods do not support, and Diverged.
    """
    from training.recipes.preference.objectives import Kto
    from training.recipes.preference.requirements import require_batches, require_supported
    from training.recipes.training_loop import trainer
    from training.recipes.training_loop.autocast_fix import WithoutCasts

    require_supported(run)
    require_batches(run)
    method = trainer.Method("kto", lora.keep, adapt=lora.adapt, callbacks=[WithoutCasts()], objective=Kto())
    trainer.train(run, events, cancel, method)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
