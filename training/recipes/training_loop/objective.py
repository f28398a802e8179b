"""Objectives of a training: the rows that are read, TRL's trainer on them, and the held-out loss."""

from __future__ import annotations

import math
from typing import Any, Protocol

from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from training.lm.evaluation import HeldOutLoss, held_out_loss
from training.recipes.run_file import Run
from training.recipes.training_loop.attention import attend_within_bounds, has_kernel
from training.recipes.training_loop.batches import Material, read_material
from training.recipes.training_loop.loss_weights import WeightedTrainer


class Objective(Protocol):
    """An objective of a training."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Return the rows in reading order and the held-out ones. Raises BadInput."""

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's trainer; `parts` are its model, peft_config and processing_class."""

    def measure(self, model: Any, run: Run, material: Material, pad: int) -> HeldOutLoss:
        """Return the held-out loss of the model."""

    def guess(self, model: Any) -> float | None:
        """Return the loss of a guess that knows nothing; None where a loss below that of the start says enough."""


class Answers:
    """The likelihood of answers, and of texts: supervised fine-tuning."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Tokenise the rows. Raises BadInput."""
        return read_material(run, tokenizer)

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's SFTTrainer; its GPU defaults, which cost time on a CPU, are switched off there."""
        packing = bool(run.hyperparameters.packing)
        if packing and has_kernel():
            attend_within_bounds(parts["model"])
        chosen: dict[str, Any] = {
            "max_length": None,
            "padding_free": packing,
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        kind = WeightedTrainer if material.is_weighted else SFTTrainer
        return kind(args=SFTConfig(**options, **chosen), train_dataset=material.rows, **parts)

    def measure(self, model: Any, run: Run, material: Material, pad: int) -> HeldOutLoss:
        """Return the mean loss of a held-out token."""
        return held_out_loss(model, material.held_out, pad)

    def guess(self, model: Any) -> float | None:
        """Return the loss when each token of the vocabulary is as likely."""
        return math.log(model.config.get_text_config().vocab_size)
