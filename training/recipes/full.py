"""Full fine-tuning of every weight of the base model: `python -m training.recipes.full RUN_JSON`.

Writes OUTPUT/model, a checkpoint that can be registered as a base model, and OUTPUT/adapter, the nearest LoRA of the
run's rank. The LoRA's error is in OUTPUT/result.json; a LoRA does not hold changes of embeddings and norms.
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
    """Train the run with full fine-tuning and write its output: the whole model, and its nearest plain LoRA.

    Raises BadInput and Diverged.
    """
    from training.recipes.output.whole_model import keep
    from training.recipes.training_loop import trainer

    trainer.train(run, events, cancel, trainer.Method("full", keep, adapt=in_full_precision))


def in_full_precision(model: Any, run: Run, material: Any) -> tuple[Any, None]:
    """Convert the model to float32, make every weight trainable, and return (model, None): no PEFT configuration.

    In bfloat16 most updates would be rounded away. On a GPU products are still computed in bfloat16. `run` and
    `material` are not used.
    """
    return all_weights(model.float(), run, material)


def all_weights(model: Any, run: Run, material: Any) -> tuple[Any, None]:
    """Make every weight of the model trainable, and return (model, None): there is no PEFT configuration."""
    return model.requires_grad_(True), None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
