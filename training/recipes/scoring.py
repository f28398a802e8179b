"""Statistics on paired losses of two models, and scores of answers against references. It needs numpy alone."""

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
    """Mean of the difference `first - second` of two models' losses, in nats per token, with a 95 % interval.

    `low` and `high` are the interval's bounds. Below 0 the first model is better.
    """

    mean: float
    low: float
    high: float


def paired_difference(
    first: Sequence[float], second: Sequence[float], tokens: Sequence[float], seed: int = 0
) -> Difference:
    """Return the mean difference of two models' losses on the same examples, weighted by tokens, with its interval.

    `first` and `second` are losses in nats per token by example, `tokens` the examples' weights. The interval is a
    percentile bootstrap over examples (Efron, 1979), so that tokens of one example are not taken as independent.
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
    """Return 1.0 if the answer's words are the wanted ones in the same order, without regard to case, else 0.0."""
    return float(words(answer) == words(wanted))


def token_f1(answer: str, wanted: str) -> float:
    """Return the harmonic mean of precision and recall over words, as in SQuAD (Rajpurkar et al., 2016).

    1 if both are empty.
    """
    answered, expected = Counter(words(answer)), Counter(words(wanted))
    shared = (answered & expected).total()
    return 2 * shared / (answered.total() + expected.total()) if shared else float(not answered and not expected)


def matches(answer: str, pattern: str) -> float:
    """Return 1.0 if the regular expression occurs in the answer, else 0.0.

    Raises BadPattern if the expression is not valid, too long or too large.
    """
    return float(contains(pattern, answer))
