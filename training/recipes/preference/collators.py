"""Collators that make batches of preference rows as TRL's trainers read them, padded on the right.

Tokens whose label is not IGNORED count in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from training.lm.token_sequences import IGNORED, TokenSequence, padded

Rows = Sequence[dict[str, Any]]
Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Collator:
    """Base of the collators; `pad` is the token that fills short rows."""

    pad: int

    def padded(self, rows: Rows, *names: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (ids, attention mask, labels) of the rows' sequences with these column prefixes, padded to one length.

        The sequences of all rows for the first name come first, then those for the next.
        """
        sequences = [TokenSequence(row[f"{name}_ids"], row[f"{name}_labels"]) for name in names for row in rows]
        ids, mask, labels = (torch.tensor(each) for each in padded(sequences, self.pad))
        return ids, mask, labels

    def completions(self, rows: Rows, *names: str, prefix: str = "") -> Batch:
        """Return a batch of the named sequences: ids, attention mask and completion mask.

        The keys are {prefix}input_ids, {prefix}attention_mask and {prefix}completion_mask, which is 1 for tokens that
        count in the loss.
        """
        ids, mask, labels = self.padded(rows, *names)
        counted = (labels != IGNORED).long()
        return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask, f"{prefix}completion_mask": counted}


class PairCollator(Collator):
    """Collator for TRL's DPOTrainer: all preferred answers, then all rejected ones."""

    def __call__(self, rows: Rows) -> Batch:
        """Return one batch of the rows."""
        return self.completions(rows, "chosen", "rejected")


class AnswerCollator(Collator):
    """Collator for TRL's KTOTrainer: the answers, the mismatched answers (KL_...), and the good or bad labels."""

    def __call__(self, rows: Rows) -> Batch:
        """Return one batch of the rows."""
        labels = torch.tensor([row["label"] for row in rows])
        return {**self.completions(rows, "answer"), **self.completions(rows, "other", prefix="KL_"), "label": labels}


class SideCollator(Collator):
    """Collator for TRL's ORPOTrainer: preferred and rejected answers in separate tensors."""

    def __call__(self, rows: Rows) -> Batch:
        """Return one batch of the rows."""
        batch: Batch = {}
        for side in ("chosen", "rejected"):
            ids, mask, labels = self.padded(rows, side)
            batch |= {f"{side}_input_ids": ids, f"{side}_attention_mask": mask, f"{side}_labels": labels}
        return batch
