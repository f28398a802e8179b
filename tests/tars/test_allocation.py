"""Ranks: exact within a quantum, never over the budget, and refusals that say what would do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from training.tars import allocation

SHAPES = [(16, 16), (8, 16), (24, 16), (16, 24)]
COSTS = [allocation.cost(shape) for shape in SHAPES]


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[int], int, int, int, int]:
    count = draw(st.integers(1, 12))
    scores = draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    costs = draw(st.lists(st.integers(8, 4096), min_size=count, max_size=count))
    quantum = draw(st.sampled_from([1, 2, 4, 8]))
    low = draw(st.integers(0, 3)) * quantum
    high = low + draw(st.integers(1, 8)) * quantum
    budget = draw(st.integers(low * sum(costs), high * sum(costs)))
    return scores, costs, budget, low, high, quantum


@settings(max_examples=60, deadline=None)
@given(problems())
def test_ranks_keep_every_promise_and_are_within_a_quantum_of_the_linear_optimum(problem) -> None:
    scores, costs, budget, low, high, quantum = problem
    ranks = allocation.allocate_linear(*problem)
    assert sum(c * r for c, r in zip(costs, ranks, strict=True)) <= budget
    assert all(low <= rank <= high and rank % quantum == 0 for rank in ranks)
    worth = np.maximum(np.array(scores) / max(scores), 1e-6)
    relaxed = linprog(-worth, A_ub=[costs], b_ub=[budget], bounds=[(low, high)] * len(costs))
    # At a vertex one module at most is fractional, so rounding it down costs less than a quantum of the best.
    assert worth @ ranks >= -relaxed.fun - quantum - 1e-6 * len(costs) * high


@pytest.mark.parametrize("scores", [[0.0] * 4, [1e-300, 1e-290, 0.0, 1e-295], [1e300, 1.0, 0.0, 1e-300], [7.0] * 4])
def test_degenerate_scores_spend_the_budget(scores: list[float]) -> None:
    budget = 16 * sum(COSTS)
    ranks = allocation.allocate_linear(scores, COSTS, budget, 4, 64, 4)
    left = budget - sum(c * r for c, r in zip(COSTS, ranks, strict=True))
    assert 0 <= left < 4 * max(COSTS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_score_that_is_no_number_is_named(bad: float) -> None:
    with pytest.raises(allocation.BadScores, match="Score 2"):
        allocation.allocate_linear([1.0, 2.0, bad, 3.0], COSTS, 16 * sum(COSTS), 4, 64, 4)


def test_refusals_say_the_nearest_budget_that_would_do() -> None:
    with pytest.raises(allocation.BudgetTooSmall) as small:
        allocation.check_budget("params", 100, SHAPES, 4, 64, 4)
    assert small.value.minimum == 4 * sum(COSTS)
    with pytest.raises(allocation.BudgetTooLarge) as large:
        allocation.check_budget("uniform", 65, SHAPES, 4, 64, 4)
    assert large.value.maximum == 64 * sum(COSTS)
    assert allocation.check_budget("params", small.value.minimum, SHAPES, 4, 64, 4)
    assert allocation.check_budget("params", large.value.maximum, SHAPES, 4, 64, 4)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("percent", 5, SHAPES, 4, 64, 4), allocation.BadBudget),
        (("uniform", 0, SHAPES, 4, 64, 4), allocation.BadBudget),
        (("uniform", 8, SHAPES, 9, 11, 4), allocation.BadBounds),
        (("uniform", 8, SHAPES, 4, 64, 0), allocation.BadBounds),
    ],
)
def test_nonsense_is_refused(arguments, error: type[Exception]) -> None:
    with pytest.raises(error):
        allocation.check_budget(*arguments)


def test_budgets_of_every_kind_mean_the_same() -> None:
    parameters = allocation.budget_parameters("uniform_rank", 16, SHAPES)
    assert allocation.budget_parameters("parameters", parameters, SHAPES) == parameters
    assert allocation.budget_parameters("bytes", 2 * parameters, SHAPES) == parameters
    assert allocation.budget_parameters("uniform", 16, SHAPES) == parameters


def test_uniform_takes_the_largest_rank_that_fits() -> None:
    assert allocation.allocate_uniform(COSTS, 16 * sum(COSTS) - 1, 4, 64, 4) == [12] * 4


def test_patterns_have_one_scale_and_exclusive_keys() -> None:
    pattern = allocation.patterns({"m.1.q": 8, "m.10.q": 4, "m.2.q": 8, "m.1.k": 0, "m.2.k": 8}, scale=2)
    assert (pattern.r, pattern.lora_alpha) == (8, 16)
    assert pattern.rank_pattern == {r"^m\.10\.q": 4}
    assert pattern.alpha_pattern == {r"^m\.10\.q": 8}
    assert pattern.target_modules == ["m.2.k", "q"]


def test_a_plan_reallocates_from_its_scores_through_json() -> None:
    modules = [{"name": f"m.{i}", "shape": list(shape), "score": 4.0 - i} for i, shape in enumerate(SHAPES)]
    known = {"preset": "seed", "rank_min": 4, "rank_max": 64, "quantum": 4, "scale": 2.0}
    first = known | allocation.plan_fields(modules, "seed", "uniform", 16, (4, 64, 4), 2.0)
    stored = json.loads(json.dumps(first))
    assert allocation.reallocate(stored, "uniform", 16) == first
    smaller = allocation.reallocate(stored, "parameters", first["parameters"] // 2)
    assert smaller["parameters"] <= first["parameters"] // 2
    assert smaller["budget"] == {"kind": "parameters", "value": first["parameters"] // 2,
                                 "parameters": first["parameters"] // 2}  # fmt: skip
