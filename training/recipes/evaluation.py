"""Held-out loss: the one function that recipes and evaluations share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from training.tars.data import IGNORED, TokenSequence, padded

BATCH_TOKENS = 1024


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean negative log-likelihood in nats over `tokens` completion tokens."""

    loss: float
    tokens: int


def first_tokens(sequences: Sequence[TokenSequence], most: int) -> list[TokenSequence]:
    """The first sequences with at most `most` tokens that count; the first one always."""
    taken: list[TokenSequence] = []
    room = most
    for sequence in sequences:
        if taken and sequence.targets > room:
            break
        taken.append(sequence)
        room -= sequence.targets
    return taken


def held_out_loss(model: nn.Module, sequences: Sequence[TokenSequence], pad: int) -> HeldOutLoss:
    """Evaluate a causal language model; the same for every batching and order. The model's mode is restored."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for group in groups(sequences):
            ids, mask, labels = (torch.tensor(rows, device=device) for rows in padded(group, pad))
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            counted = labels[:, 1:] != IGNORED
            losses = functional.cross_entropy(logits[counted].float(), labels[:, 1:][counted], reduction="none")
            total += float(losses.double().sum())
            tokens += int(counted.sum())
    model.train(was_training)
    return HeldOutLoss(total / tokens, tokens)


def groups(sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
    """Neighbours in length, at most BATCH_TOKENS with the padding (one sequence may be longer)."""
    made: list[list[TokenSequence]] = []
    for sequence in sorted(sequences, key=lambda sequence: len(sequence.ids)):
        if not made or (len(made[-1]) + 1) * len(sequence.ids) > BATCH_TOKENS:
            made.append([])
        made[-1].append(sequence)
    return made
