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
    """The interface of a training's objective: how rows are read, which trainer runs, and how the loss is measured."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Return the training rows in reading order and the held-out ones.

        Raises BadInput if they cannot be trained on.
        """

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's trainer; `parts` are its model, peft_config and processing_class."""

    def measure(self, model: Any, run: Run, material: Material, pad: int) -> HeldOutLoss:
        """Return the model's loss on the held-out rows of the material."""

    def guess(self, model: Any) -> float | None:
        """Return the loss in nats of a guess that knows nothing; None if no such bound is to be checked."""


class Answers:
    """Objective of supervised fine-tuning: the likelihood of the answers, or of plain texts."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Return the tokenised rows. Raises BadInput."""
        return read_material(run, tokenizer)

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's SFTTrainer for rows that are prepared already.

        One that weighs the loss if the rows have weights.

        With packing and an attention kernel, attention of the model is kept within each packed text.
        """
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
        """Return the mean loss of a held-out token in nats."""
        return held_out_loss(model, material.held_out, pad)

    def guess(self, model: Any) -> float | None:
        """Return the loss in nats when each token of the vocabulary is equally likely."""
        return math.log(model.config.get_text_config().vocab_size)
