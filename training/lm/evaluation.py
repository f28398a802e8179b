"""Held-out loss, computed by the one function that recipes and evaluations share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from training.lm.data import IGNORED, TokenSequence, padded

BATCH_TOKENS = 1024


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean negative log-likelihood in nats over `tokens` completion tokens."""

    loss: float
    tokens: int


def first_tokens(sequences: Sequence[TokenSequence], most: int) -> list[TokenSequence]:
    """Return the leading sequences with at most `most` loss tokens in all; always at least the first one."""
    leading: list[TokenSequence] = []
    room = most
    for sequence in sequences:
        if leading and sequence.targets > room:
            break
        leading.append(sequence)
        room -= sequence.targets
    return leading


def held_out_loss(model: nn.Module, sequences: Sequence[TokenSequence], pad: int) -> HeldOutLoss:
    """Measure a causal model's loss, independent of batching and order. The model's mode is restored."""
    examples = example_losses(model, sequences, pad)
    tokens = sum(example.tokens for example in examples)
    return HeldOutLoss(sum(example.loss * example.tokens for example in examples) / tokens, tokens)


def example_losses(model: nn.Module, sequences: Sequence[TokenSequence], pad: int) -> list[HeldOutLoss]:
    """Return the loss of each sequence, in order. The model's mode is restored."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    loss_of: dict[int, HeldOutLoss] = {}
    with torch.no_grad():
        for group in groups(sequences):
            ids, mask, labels = (torch.tensor(rows, device=device) for rows in padded(group, pad))
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            counted = labels[:, 1:] != IGNORED
            losses = torch.zeros(counted.shape, dtype=torch.float64, device=device)
            losses[counted] = functional.cross_entropy(
                logits[counted].float(), labels[:, 1:][counted], reduction="none"
            ).double()
            for sequence, total, tokens in zip(group, losses.sum(1).tolist(), counted.sum(1).tolist(), strict=True):
                loss_of[id(sequence)] = HeldOutLoss(total / tokens, tokens)
    model.train(was_training)
    return [loss_of[id(sequence)] for sequence in sequences]


def groups(sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
    """Group sequences of similar length into batches of at most BATCH_TOKENS, padding included; one may be longer."""
    batches: list[list[TokenSequence]] = []
    for sequence in sorted(sequences, key=lambda sequence: len(sequence.ids)):
        if not batches or (len(batches[-1]) + 1) * len(sequence.ids) > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(sequence)
    return batches
