"""GaLore: trains every weight, with optimiser states on a low-rank projection of gradients (arXiv 2403.03507).

Command: `python -m training.recipes.galore RUN_JSON`. Writes the same files as full fine-tuning.
"""

from __future__ import annotations

import sys

from training.recipes.entrypoint import Cancel, RunEvents, program
from training.recipes.full import all_weights
from training.recipes.run_file import Run

GAP = 200
SCALE = 0.25


def main(arguments: list[str]) -> int:
    """Run the recipe with the command line's run file; return the exit status."""
    # The optimiser's package imports it, for its form of 8 bits.
    return program(arguments, train, uses_bitsandbytes=True)


def train(run: Run, events: RunEvents, cancel: Cancel) -> None:
    """Train the run with GaLore and write its output: the whole model, and its nearest plain LoRA.

    Raises BadInput and Diverged.
    """
    import torch
    from galore_torch.galore_projector import GaLoreProjector

    from training.recipes.output.whole_model import keep
    from training.recipes.training_loop import trainer

    # A checkpoint holds the projections; only this type is let through besides tensors.
    torch.serialization.add_safe_globals([GaLoreProjector])
    options = {
        "optim": "galore_adamw",
        "optim_target_modules": [rf".*{name}" for name in run.target_modules],
        "optim_args": f"rank={run.hyperparameters.galore_rank}, update_proj_gap={GAP}, scale={SCALE}",
    }
    trainer.train(run, events, cancel, trainer.Method("galore", keep, adapt=all_weights, options=options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
