"""Log-probabilities of tokens, from the model's own logits: before biases, grammars and temperatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Places of a prompt whose probabilities are computed at once: each takes a number for every token there is.
PLACES_AT_ONCE = 64


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability and rank (from 1) of a token, and the most likely tokens at its place with theirs."""

    token: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


def logprobs_of(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    """Return the log-probability and rank of the token at each position, with the `count` most likely tokens there.

    `logits` is (positions, vocabulary), before biases and temperature; `tokens` has one for each position.
    """
    entries: list[TokenLogprobs] = []
    for start in range(0, len(tokens), PLACES_AT_ONCE):
        few = tokens[start : start + PLACES_AT_ONCE]
        entries += _of_few(logits[start : start + len(few)], few, count)
    return entries


def _of_few(logits: torch.Tensor, tokens: Sequence[int], count: int) -> list[TokenLogprobs]:
    logits = logits.float()
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    total = logits.logsumexp(dim=-1, keepdim=True)
    ranks = (logits > chosen).sum(dim=-1) + 1
    best, names = logits.topk(min(count, logits.shape[-1]), dim=-1)
    rows = zip(
        tokens,
        (chosen - total)[:, 0].tolist(),
        ranks.tolist(),
        names.tolist(),
        (best - total).tolist(),
        strict=True,
    )
    return [
        TokenLogprobs(token, logprob, rank, tuple(zip(top, top_logprobs, strict=True)))
        for token, logprob, rank, top, top_logprobs in rows
    ]
