"""Checks for settings of a run file that preference methods do not support."""

from __future__ import annotations

from training.lm.error_reporting import BadInput
from training.lm.token_sequences import ANSWERS
from training.recipes.run_file import Run


def require_supported(run: Run) -> None:
    """Raise BadInput for a setting that TRL's preference trainers do not support.

    These are packing, another loss than whole answers, LoRA dropout and sharding.
    """
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
    """Raise BadInput if `batch_size` is below 2, as KTO needs mismatched answers."""
    if run.hyperparameters.batch_size < 2:
        raise BadInput("hyperparameters.batch_size: KTO compares the answers of a batch: choose at least 2.")
