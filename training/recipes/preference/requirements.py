"""Settings of a run file that no preference method knows."""

from __future__ import annotations

from training.lm.error_reporting import BadInput
from training.lm.token_sequences import ANSWERS
from training.recipes.run_file import Run


def require_supported(run: Run) -> None:
    """Check that the run asks for nothing that TRL's preference trainers do not do. Raises BadInput."""
    chosen = run.hyperparameters
    if chosen.packing:
        raise BadInput("hyperparameters.packing: preference rows are not packed: set it to 0.")
    if chosen.loss != ANSWERS:
        raise BadInput(f"hyperparameters.loss: whole answers are compared: set it to {ANSWERS}.")
    if chosen.lora_dropout:
        raise BadInput("hyperparameters.lora_dropout: answers are compared without dropout: set it to 0.")
    if run.sharding != "ddp":
        raise BadInput("sharding: preference methods train replicas: choose 'ddp'.")


def require_batches(run: Run) -> None:
    """Check that a batch has at least two rows: KTO needs a mismatched answer. Raises BadInput."""
    if run.hyperparameters.batch_size < 2:
        raise BadInput("hyperparameters.batch_size: KTO compares the answers of a batch: choose at least 2.")
