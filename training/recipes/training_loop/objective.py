"""Objectives of a training: the rows that are read, TRL's trainer for them, and the held-out loss."""

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
    """Interface of a training's objective: it reads the rows, makes the trainer and measures the loss."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Return the training rows in reading order and the held-out rows.

        Raises BadInput if they cannot be trained on.
        """

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's trainer for the rows.

        `parts` are its model, peft_config and processing_class, `options` the arguments of its configuration.
        """

    def measure(self, model: Any, run: Run, material: Material, pad: int) -> HeldOutLoss:
        """Return the model's loss on the material's held-out rows; `pad` is the padding token."""

    def guess(self, model: Any) -> float | None:
        """Return the loss in nats of a model that has learnt nothing.

        None if the result is not to be compared with that.
        """


class Answers:
    """Objective of supervised fine-tuning: the likelihood of the answers, or of plain texts."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Read and tokenise the run's rows, in reading order, with the held-out rows.

        Raises BadInput for a bad row and for a dataset without a row that can be used.
        """
        return read_material(run, tokenizer)

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's SFTTrainer for rows that are tokenised already.

        It is a WeightedTrainer if tokens have loss weights other than 0 and 1. With packing and an attention kernel,
        the model's attention is set to stay within each packed sequence. `parts` are the trainer's model, peft_config
        and processing_class, `options` the arguments of its configuration.
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
        """Return the mean loss in nats of the counted tokens of the held-out rows, with the loss of each row.

        `pad` is the padding token.
        """
        return held_out_loss(model, material.held_out, pad)

    def guess(self, model: Any) -> float | None:
        """Return the loss in nats if each token of the vocabulary is equally likely."""
        return math.log(model.config.get_text_config().vocab_size)
