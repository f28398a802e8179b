"""Held-out loss, computed by the one function that recipes and evaluations share."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import nn
from torch.nn import functional

from training.lm.token_sequences import IGNORED, TokenSequence, padded

BATCH_TOKENS = 1024


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean negative log-likelihood in nats over `tokens` completion tokens of `rows` rows; `examples` has each row's.

    For a preference method it is that method's loss, and `rewards` has the mean rewards by name.
    """

    loss: float
    tokens: int
    rows: int = 1
    examples: list[float] = field(default_factory=list)
    rewards: dict[str, float] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, float]:
        """Return the loss with its tokens, rows and rewards, without the rows' own losses."""
        return {"loss": self.loss, "tokens": self.tokens, "rows": self.rows, **self.rewards}


class Countable(Protocol):
    """A tokenised row: the number of tokens that the loss counts, and the source that the row names."""

    @property
    def targets(self) -> int:
        """Return the number of tokens that the loss counts."""

    @property
    def source(self) -> str:
        """Return the source that the row names; "" for none."""


Sequenced = TypeVar("Sequenced", bound=Countable)


def held_out_sample(sequences: Sequence[Sequenced], most: int, seed: int) -> list[Sequenced]:
    """Return sequences drawn by the seed, with at most `most` loss tokens in all, but always at least one sequence.

    Sequences of every source are drawn in proportion. One that does not fit is skipped.
    """
    taken: list[Sequenced] = []
    room = most
    for sequence in by_source(sequences, random.Random(seed)):  # noqa: S311 - a sample, no secret
        if not taken or sequence.targets <= room:
            taken.append(sequence)
            room -= sequence.targets
    return taken


def by_source(sequences: Sequence[Sequenced], chance: random.Random) -> list[Sequenced]:
    """Return the sequences in a random order of which any beginning has about the same share of every source."""
    sources: dict[str, list[Sequenced]] = {}
    for sequence in chance.sample(list(sequences), len(sequences)):
        sources.setdefault(sequence.source, []).append(sequence)
    ranked = [
        ((place + chance.random()) / len(members), sequence)
        for members in sources.values()
        for place, sequence in enumerate(members)
    ]
    return [sequence for _, sequence in sorted(ranked, key=lambda pair: pair[0])]


def held_out_loss(model: nn.Module, sequences: Sequence[TokenSequence], pad: int) -> HeldOutLoss:
    """Return a causal model's loss on the sequences, independent of batching and order; `pad` is the padding token.

    The model's training or evaluation mode is restored.
    """
    measured = example_losses(model, sequences, pad)
    losses = [example.loss for example in measured]
    tokens = sum(example.tokens for example in measured)
    return HeldOutLoss(mean_loss(losses, sequences), tokens, len(measured), losses)


def mean_loss(losses: Sequence[float], sequences: Sequence[TokenSequence]) -> float:
    """Return the weighted mean over all tokens, from the mean loss and the weight of each sequence."""
    weights = [sequence.weight for sequence in sequences]
    return sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)


def example_losses(model: nn.Module, sequences: Sequence[TokenSequence], pad: int) -> list[HeldOutLoss]:
    """Return the loss of each sequence, in order: the weighted mean over its tokens, in nats.

    `pad` is the padding token. The model's training or evaluation mode is restored.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    measured: dict[int, HeldOutLoss] = {}
    with torch.no_grad():
        for group in groups(sequences):
            ids, mask, labels = (torch.tensor(rows, device=device) for rows in padded(group, pad))
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            counted = labels[:, 1:] != IGNORED
            losses = torch.zeros(counted.shape, dtype=torch.float64, device=device)
            losses[counted] = functional.cross_entropy(
                widened(logits[counted]), labels[:, 1:][counted], reduction="none"
            ).double()
            totals = (losses * weights_of(group, losses)).sum(1).tolist()
            for sequence, total in zip(group, totals, strict=True):
                measured[id(sequence)] = HeldOutLoss(total / sequence.weight, sequence.targets)
    model.train(was_training)
    return [measured[id(sequence)] for sequence in sequences]


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Return the logits in float32, or in their own type if that is wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def weights_of(group: Sequence[TokenSequence], losses: torch.Tensor) -> torch.Tensor:
    """Return the weight of each loss, in the shape of `losses`: (sequences, tokens - 1)."""
    weights = torch.ones_like(losses)
    for row, sequence in enumerate(group):
        if sequence.weights:
            weights[row, : len(sequence.ids) - 1] = torch.tensor(sequence.weights[1:], dtype=losses.dtype)
    return weights


def groups(sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
    """Group sequences of similar length into batches of at most BATCH_TOKENS tokens, padding included.

    A longer sequence is a batch of its own.
    """
    batches: list[list[TokenSequence]] = []
    for sequence in sorted(sequences, key=lambda sequence: len(sequence.ids)):
        if not batches or (len(batches[-1]) + 1) * len(sequence.ids) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(sequence)
    return batches
