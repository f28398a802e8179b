"""Sequences that an analysis reads: rows of the task, and of general text as the reference of the divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from training.lm import token_sequences
from training.lm.token_sequences import Row, TokenSequence
from training.tars.config import AnalysisConfig
from training.tars.signals import Batch, batch_of


@dataclass(frozen=True)
class Sample:
    """Token sequences drawn from the task (`target`) and from the reference (`base`, which may be empty).

    A sequence belongs to the half 0 or 1 of the sample by the parity of its index.
    """

    target: list[TokenSequence]
    base: list[TokenSequence]
    pad: int
    device: torch.device
    batch_size: int

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tokenizer: Any,
        rows: Sequence[Row],
        reference: Sequence[Row] | None,
        config: AnalysisConfig,
    ) -> Sample:
        """Return a tokenised sample of the task's rows and of the reference's; None or [] gives no reference.

        Raises DataError if one of them has no token to predict.
        """
        # Padding is masked everywhere, so any token will do.
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        target = sampled_sequences(rows, tokenizer, config)
        base = sampled_sequences(reference, tokenizer, config) if reference else []
        return cls(target, base, pad, next(model.parameters()).device, config.batch_size)

    def shuffled(self, half: int) -> list[Batch]:
        """Return the task's sequences of one half (0 or 1) in batches, in the random order in which they were drawn.

        A half that is empty is replaced by the first sequence.
        """
        places = [place for place in range(len(self.target)) if place % 2 == half] or [0]
        starts = range(0, len(places), self.batch_size)
        return [batch_of(self.target, places[at : at + self.batch_size], self.pad, self.device) for at in starts]


def sampled_sequences(
    rows: Sequence[Row], tokenizer: Any, config: AnalysisConfig, most: int | None = None
) -> list[TokenSequence]:
    """Return the tokenised sample of `samples` rows, or of up to `most`, drawn by the seed.

    Rows in which no token counts are left out. Raises DataError if none is left, and for a row that cannot be rendered.
    """
    sequences = token_sequences.tokenised(
        token_sequences.sample(rows, most or config.samples, config.seed), tokenizer, config.max_length
    )
    if not sequences:
        raise token_sequences.DataError(
            "No row has a token to predict: give rows of text, or raise max_length if completions begin beyond it."
        )
    return sequences


def own_words(model: Any, tokenizer: Any, config: AnalysisConfig) -> list[Row]:
    """Return rows of text that the base model generates at random from an empty prompt, as a reference.

    There are `samples` rows of up to max_length tokens. Torch's global random state is set to the `seed` of `config`.
    """
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    torch.manual_seed(config.seed)
    written: list[Row] = []
    while len(written) < config.samples:
        count = min(config.batch_size, config.samples - len(written))
        starts = torch.full((count, 1), first, device=model.device)
        ids = model.generate(
            starts,
            attention_mask=torch.ones_like(starts),
            do_sample=True,
            max_new_tokens=config.max_length - 1,
            pad_token_id=tokenizer.pad_token_id,
        )
        written += [{"text": text or " "} for text in tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)]
    return written
