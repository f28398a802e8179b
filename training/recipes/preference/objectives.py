"""Objectives of DPO, KTO and ORPO, trained by TRL on rows that are tokenised here.

The reference of DPO and KTO is the base model: the same weights with the adapter switched off, not a second model. ORPO
needs no reference.
"""

from __future__ import annotations

import os
from typing import Any

from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer  # type: ignore[attr-defined]

from training.lm.evaluation import HeldOutLoss
from training.lm.preference_losses import held_out_dpo, held_out_kto, held_out_orpo
from training.recipes.preference.collators import AnswerCollator, PairCollator, SideCollator
from training.recipes.preference.ordered_rows import read_answers, read_pairs
from training.recipes.run_file import Run
from training.recipes.training_loop.batches import Material


class PairTrainer(DPOTrainer):
    """TRL's DPOTrainer for rows that are tokenised already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class AnswerTrainer(KTOTrainer):
    """TRL's KTOTrainer for rows that are tokenised already and have their mismatched answers."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class Preference:
    """Base of the preference objectives, whose results are not compared with a guess."""

    def guess(self, model: Any) -> float | None:
        """Return None: no loss of guessing is compared with, as the base model is the reference."""
        return None


class Dpo(Preference):
    """Direct preference optimisation on pairs (arXiv 2305.18290)."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Read and tokenise the run's preference pairs, in reading order.

        Raises BadInput for a bad row, for rows that are not pairs, and for a dataset without a row that can be used.
        """
        return read_pairs(run, tokenizer)

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's DPOTrainer for the run, with the base model as the reference.

        `parts` are its model, peft_config and processing_class, `options` the arguments of its configuration.
        """
        config = DPOConfig(**options, max_length=None, beta=run.hyperparameters.beta)
        collator = PairCollator(parts["processing_class"].pad_token_id)
        return with_base_as_reference(
            PairTrainer(args=config, train_dataset=material.rows, data_collator=collator, **parts)
        )

    def measure(self, model: Any, run: Run, material: Material, pad: int) -> HeldOutLoss:
        """Return the DPO loss and the rewards on the held-out pairs."""
        return held_out_dpo(model, material.held_out, pad, run.hyperparameters.beta)


class Kto(Preference):
    """Kahneman-Tversky optimisation on answers that are marked good or bad (arXiv 2402.01306)."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Read and tokenise the run's marked answers, and both answers of each pair, in reading order.

        Raises BadInput for a bad row and for a dataset without a row that can be used.
        """
        return read_answers(run, tokenizer)

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's KTOTrainer for the run, with the base model as the reference.

        `parts` are its model, peft_config and processing_class, `options` the arguments of its configuration.
        """
        chosen = run.hyperparameters
        weights: dict[str, Any] = {
            "desirable_weight": chosen.desirable_weight,
            "undesirable_weight": chosen.undesirable_weight,
        }
        config = KTOConfig(**options, **weights, max_length=None, beta=chosen.beta)
        collator = AnswerCollator(parts["processing_class"].pad_token_id)
        return with_base_as_reference(
            AnswerTrainer(args=config, train_dataset=material.rows, data_collator=collator, **parts)
        )

    def measure(self, model: Any, run: Run, material: Material, pad: int) -> HeldOutLoss:
        """Return the KTO loss and the rewards on the held-out answers."""
        chosen = run.hyperparameters
        weights = chosen.desirable_weight, chosen.undesirable_weight
        return held_out_kto(model, material.held_out, pad, chosen.beta, weights, chosen.max_length)


class Orpo(Preference):
    """Odds ratio preference optimisation on pairs (arXiv 2403.07691), which needs no reference; experimental in TRL."""

    def read(self, run: Run, tokenizer: Any) -> Material:
        """Read and tokenise the run's preference pairs, in reading order.

        Raises BadInput for a bad row, for rows that are not pairs, and for a dataset without a row that can be used.
        """
        return read_pairs(run, tokenizer)

    def trainer(self, run: Run, parts: dict[str, Any], material: Material, options: dict[str, Any]) -> Any:
        """Return TRL's ORPOTrainer for the run.

        `parts` are its model, peft_config and processing_class, `options` the arguments of its configuration. TRL's
        warning that ORPO is experimental is silenced.
        """
        # It warns on its import that its interface may change; the pin of TRL and docs/training.md say so.
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        class SideTrainer(ORPOTrainer):
            """TRL's trainer on rows that are tokenised already."""

            def tokenize_row(self, feature: Any, model: Any = None) -> Any:
                return feature

        config = ORPOConfig(**options, max_length=run.hyperparameters.max_length, beta=run.hyperparameters.beta)
        collator = SideCollator(parts["processing_class"].pad_token_id)
        return SideTrainer(args=config, train_dataset=material.rows, data_collator=collator, **parts)

    def measure(self, model: Any, run: Run, material: Material, pad: int) -> HeldOutLoss:
        """Return the ORPO loss and the rewards on the held-out pairs."""
        return held_out_orpo(model, material.held_out, pad, run.hyperparameters.beta)


def with_base_as_reference(trainer: Any) -> Any:
    """Delete the copy of the adapter that TRL adds as reference for a model that is wrapped already.

    Return the trainer. An adapter with start values changes nothing before its first step, so the base model is the
    same reference.
    """
    if "ref" in trainer.model.peft_config:
        trainer.model.delete_adapter("ref")
    return trainer
