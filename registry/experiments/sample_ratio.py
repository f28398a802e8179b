"""Test for a sample-ratio mismatch: arms that do not get the share of units that their weights set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log

from registry.experiments.confidence_sequences import Number, concentration, log_evidence

TUNED_FOR = 10_000  # units; a mismatch of a few points is found at about this many


@dataclass(frozen=True)
class Exposure:
    """The number of units (users, not requests) that each arm was the first to serve at one weight.

    `share` is the fraction of both arms' units that the candidate should have, 0 to 1: one half next to a control of
    equal size, whatever the weight.
    """

    control: Number
    candidate: Number
    share: float


def mismatch_evidence(exposures: Iterable[Exposure], alpha: float) -> Number:
    """Return the log evidence of a wrong split; pass one exposure for each share that the rollout had.

    `alpha` only tunes the test: compare the result with -log(alpha). The two-arm case of the Dirichlet-multinomial
    mixture of Lindon and Malek, "Anytime-valid inference for multinomial count data" (2022); over shares the
    martingales are multiplied. Shares of 0 and 1 leave nothing to chance and are left out. Raises ValueError for a
    share outside 0 to 1 or an alpha outside 0 and 1.
    """
    prior = concentration(alpha, TUNED_FOR)
    return sum(evidence(exposure, prior) for exposure in exposures)


def evidence(exposure: Exposure, prior: float) -> Number:
    """Return the log evidence against the intended split at one weight; 0 for a share of 0 or 1.

    `prior` is the weight of the mixture in samples. Raises ValueError for a share outside [0, 1].
    """
    if not 0 <= exposure.share <= 1:
        raise ValueError(f"share must be between 0 and 1, not {exposure.share}.")
    if exposure.share in (0, 1):
        return 0.0
    return log_evidence(exposure.candidate, exposure.control + exposure.candidate, exposure.share, prior)


def mismatched(exposures: Iterable[Exposure], alpha: float) -> bool:
    """Return True if the split is wrong; over all calls, a correct split gives True with probability at most alpha."""
    return bool(mismatch_evidence(exposures, alpha) >= -log(alpha))
