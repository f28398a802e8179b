"""Sampling of the next token of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

# Below this temperature dividing the logits would overflow, and the most likely token is chosen anyway.
GREEDY_BELOW = 1e-5


@dataclass(frozen=True)
class SamplingParams:
    """The sampling parameters of a request.

    `logprobs` and `prompt_logprobs` are the numbers of most likely tokens that are listed beside each token of the
    answer and of the prompt; None for no log-probabilities at all. `top_k` 0 sets no limit.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = field(default_factory=frozenset)
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def takes_most_likely(self) -> bool:
        """True if the next token is always the most likely one: temperature 0 and no biases."""
        return self.temperature < GREEDY_BELOW and not self.logit_bias

    def generator(self) -> torch.Generator | None:
        """Return a new random generator with the request's seed, or None without a seed."""
        return None if self.seed is None else torch.Generator().manual_seed(self.seed)


def choose_tokens(
    logits: torch.Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator | None]
) -> list[int]:
    """Return one token id for each row, sampled from finite logits (rows, vocabulary).

    Each row has its parameters and its random generator, None for PyTorch's own. Biases are added to the logits in
    place.
    """
    for row, parameters in enumerate(params):
        for token, bias in parameters.logit_bias.items():
            logits[row, token] += bias
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    for row, (parameters, generator) in enumerate(zip(params, generators, strict=True)):
        if parameters.temperature >= GREEDY_BELOW:
            tokens[row] = _sample(logits[row].cpu(), parameters, generator)
    return tokens


def _sample(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator | None) -> int:
    probabilities, tokens = (logits / params.temperature).softmax(dim=-1).sort(descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= params.top_p] = 0.0
    if params.top_k > 0:
        probabilities[params.top_k :] = 0.0
    return int(tokens[torch.multinomial(probabilities, 1, generator=generator)])
