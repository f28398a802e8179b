"""Full fine-tuning of every weight of the base model: `python -m training.recipes.full RUN_JSON`.

Writes OUTPUT/model (a checkpoint that can be registered as a base model) and OUTPUT/adapter, the nearest LoRA of the
chosen rank, with its error beside it: embeddings and norms are not part of a LoRA.
"""

from __future__ import annotations

import sys
from typing import Any

from training.recipes.entrypoint import Cancel, RunEvents, program
from training.recipes.run_file import Run


def main(arguments: list[str]) -> int:
    """Run the recipe with the command line's run file; return the exit status."""
    return program(arguments, train)


def train(run: Run, events: RunEvents, cancel: Cancel) -> None:
    """Train the run with full fine-tuning. Raises BadInput."""
    from training.recipes.output.whole_model import keep
    from training.recipes.training_loop import trainer

    trainer.train(run, events, cancel, trainer.Method("full", keep, adapt=in_full_precision))


def in_full_precision(model: Any, run: Run, material: Any) -> tuple[Any, None]:
    """Return the model in float32, with every weight to be trained: bfloat16 weights would round most updates away.

    Products are computed in bfloat16.
    """
    return all_weights(model.float(), run, material)


def all_weights(model: Any, run: Run, material: Any) -> tuple[Any, None]:
    """Return the model with every weight to be trained."""
    return model.requires_grad_(True), None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
