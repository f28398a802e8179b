"""DPO: training on pairs of a preferred and a rejected answer (arXiv 2305.18290).

`python -m training.recipes.dpo RUN_JSON` trains a LoRA with TRL's DPOTrainer. The reference is the base model, that is
the model with the LoRA switched off.
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
    """Train the run with DPO and write its output, a LoRA.

    Raises BadInput, also for a setting that preference methods do not support, and Diverged.
    """
    from training.recipes.preference.objectives import Dpo
    from training.recipes.preference.requirements import require_supported
    from training.recipes.training_loop import trainer
    from training.recipes.training_loop.autocast_fix import WithoutCasts

    require_supported(run)
    method = trainer.Method("dpo", lora.keep, adapt=lora.adapt, callbacks=[WithoutCasts()], objective=Dpo())
    trainer.train(run, events, cancel, method)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
