"""Held-out loss of a run's output as it will be served: the 16-bit base with the published LoRA."""

from __future__ import annotations

from training.lm.base_model import load_model
from training.recipes.run_file import Run
from training.recipes.training_loop.trainer import Trained


def loss_as_served(trained: Trained, run: Run) -> float | None:
    """Load the base model with OUTPUT/adapter, as engines do, and return its held-out loss in nats.

    None without held-out rows.
    """
    from peft import PeftModel

    served = PeftModel.from_pretrained(load_model(run.base_model), str(run.output / "adapter"))
    return trained.loss(served)
