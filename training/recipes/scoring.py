"""Statistics on paired losses of two models, and scores of answers against references. numpy only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving_client.regex import contains

RESAMPLES = 2000


@dataclass(frozen=True)
class Difference:
    """Mean of `first - second` in nats a token with its 95 % interval; below zero the first is better."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], tokens: Sequence[float], seed: int = 0
) -> Difference:
    """Return the mean difference of the same examples' losses under two models, with its interval.

    The interval is a percentile bootstrap over the examples (Efron, 1979), so that tokens of one example are not taken
    for independent.
    """
    weights = np.asarray(tokens, dtype=np.float64)
    changes = (np.asarray(first) - np.asarray(second)) * weights
    chosen = np.random.default_rng(seed).integers(len(weights), size=(RESAMPLES, len(weights)))
    means = changes[chosen].sum(1) / weights[chosen].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(changes.sum() / weights.sum()), float(low), float(high))


def words(text: str) -> list[str]:
    """Return a text's words in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def exact_match(answer: str, wanted: str) -> float:
    """Return 1 if the answer has the wanted words, else 0."""
    return float(words(answer) == words(wanted))


def token_f1(answer: str, wanted: str) -> float:
    """Return the harmonic mean of precision and recall over words, as SQuAD does (Rajpurkar et al., 2016)."""
    answered, expected = Counter(words(answer)), Counter(words(wanted))
    shared = (answered & expected).total()
    return 2 * shared / (answered.total() + expected.total()) if shared else float(not answered and not expected)


def matches(answer: str, pattern: str) -> float:
    """Return 1 if the pattern occurs in the answer, else 0. Raises BadPattern."""
    return float(contains(pattern, answer))
