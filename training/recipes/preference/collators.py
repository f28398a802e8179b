"""Batches of preference rows as TRL's trainers read them, padded on the right. Counted are the tokens with labels."""

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
    """Base of the collators, which pad with the token `pad`."""

    pad: int

    def padded(self, rows: Rows, *names: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (ids, attention mask, labels) of the rows' sequences of these names.

        All rows of one name stand after each other.
        """
        sequences = [TokenSequence(row[f"{name}_ids"], row[f"{name}_labels"]) for name in names for row in rows]
        ids, mask, labels = (torch.tensor(each) for each in padded(sequences, self.pad))
        return ids, mask, labels

    def completions(self, rows: Rows, *names: str, prefix: str = "") -> Batch:
        """Return the sequences' ids, attention mask and mask of counted tokens; the names begin with `prefix`."""
        ids, mask, labels = self.padded(rows, *names)
        counted = (labels != IGNORED).long()
        return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask, f"{prefix}completion_mask": counted}


class PairCollator(Collator):
    """The batches of TRL's DPOTrainer: all preferred answers, then all rejected ones."""

    def __call__(self, rows: Rows) -> Batch:
        """Collate the rows."""
        return self.completions(rows, "chosen", "rejected")


class AnswerCollator(Collator):
    """The batches of TRL's KTOTrainer: the answers, the mismatched ones, and the labels."""

    def __call__(self, rows: Rows) -> Batch:
        """Collate the rows."""
        labels = torch.tensor([row["label"] for row in rows])
        return {**self.completions(rows, "answer"), **self.completions(rows, "other", prefix="KL_"), "label": labels}


class SideCollator(Collator):
    """The batches of TRL's ORPOTrainer: preferred and rejected answers apart."""

    def __call__(self, rows: Rows) -> Batch:
        """Collate the rows."""
        batch: Batch = {}
        for side in ("chosen", "rejected"):
            ids, mask, labels = self.padded(rows, side)
            batch |= {f"{side}_input_ids": ids, f"{side}_attention_mask": mask, f"{side}_labels": labels}
        return batch
