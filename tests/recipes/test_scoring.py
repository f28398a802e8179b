"""Paired intervals and checks of answers."""

from __future__ import annotations

import numpy as np
import pytest

from training.recipes.scoring import exact_match, matches, paired_difference, token_f1


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    chance, hits = np.random.default_rng(0), 0
    for seed in range(200):
        hard = chance.normal(3, 1, 60)
        interval = paired_difference(list(hard - 0.1 + chance.normal(0, 0.2, 60)), list(hard), [10] * 60, seed)
        hits += interval.low <= -0.1 <= interval.high
    assert 180 <= hits <= 199


def test_long_examples_weigh_more_and_equal_losses_differ_by_nothing() -> None:
    assert paired_difference([1, 2], [2, 2], [3, 1]).mean == pytest.approx(-0.75)
    same = paired_difference([1.5, 2], [1.5, 2], [3, 1])
    assert (same.mean, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [("The bank.", "the  bank", 1, 1), ("the bank", "a bank", 0, 0.5), ("", "x", 0, 0), ("", "", 1, 1)],
)
def test_answers_are_compared_by_words(answer: str, wanted: str, exact: float, f1: float) -> None:
    assert (exact_match(answer, wanted), token_f1(answer, wanted)) == (exact, f1)


def test_a_pattern_is_searched() -> None:
    assert (matches("Art. 12", r"\d+"), matches("none", r"\d+")) == (1, 0)
