"""Ranks: exact within a quantum, never over the budget, and refusals that say what would do."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from training.tars import allocation
from training.tars.allocation import Bounds, Problem
from training.tars.presets import PRESETS

SHAPES = [(16, 16), (8, 16), (24, 16), (16, 24)]
COSTS = [allocation.cost(shape) for shape in SHAPES]


LINEAR = PRESETS["seed"]


def problem_of(budget: int, low: int = 4, high: int = 64, quantum: int = 4) -> Problem:
    names = [f"mlp.{place}" for place in range(len(SHAPES))]
    wide = [(max(shape[0], 64), max(shape[1], 64)) for shape in SHAPES]
    return Problem.of(names, wide, budget, Bounds(low, high, quantum), "all")


WIDE_COSTS = [128] * 4


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[float], list[int], Problem, Bounds]:
    count = draw(st.integers(1, 12))
    scores = draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    shapes = [(draw(st.integers(100, 4096)), 100) for _ in range(count)]
    quantum = draw(st.sampled_from([1, 2, 4, 8]))
    low = draw(st.integers(0, 3)) * quantum
    bounds = Bounds(low, low + draw(st.integers(1, 8)) * quantum, quantum)
    costs = [allocation.cost(shape) for shape in shapes]
    least = bounds.rank_min * sum(costs) or quantum * min(costs)
    budget = draw(st.integers(least, bounds.rank_max * sum(costs)))
    return scores, costs, Problem.of(["mlp"] * count, shapes, budget, bounds, "all"), bounds


@settings(max_examples=60, deadline=None)
@given(problems())
def test_ranks_keep_every_promise_and_are_within_a_quantum_of_the_linear_optimum(drawn) -> None:
    scores, costs, problem, bounds = drawn
    ranks = [bounds.quantum * step for step in allocation.allocate_linear(scores, problem)]
    assert sum(c * r for c, r in zip(costs, ranks, strict=True)) <= problem.budget
    assert all(bounds.rank_min <= rank <= bounds.rank_max for rank in ranks)
    gains = np.maximum(np.array(scores) / max(scores), 1e-6)
    limits = [(bounds.rank_min, bounds.rank_max)] * len(costs)
    relaxed = linprog(-gains, A_ub=[costs], b_ub=[problem.budget], bounds=limits)
    # At a vertex one module at most is fractional, so rounding it down costs less than a quantum of the best.
    assert -relaxed.fun + 1e-6 >= gains @ ranks
    assert gains @ ranks >= -relaxed.fun - bounds.quantum - 1e-6 * len(costs) * bounds.rank_max


@pytest.mark.parametrize("scores", [[0.0] * 4, [1e-300, 1e-290, 0.0, 1e-295], [1e300, 1.0, 0.0, 1e-300], [7.0] * 4])
def test_degenerate_scores_spend_the_budget(scores: list[float]) -> None:
    budget = 16 * sum(WIDE_COSTS)
    steps = allocation.allocate_linear(scores, problem_of(budget))
    assert 0 <= budget - sum(c * 4 * step for c, step in zip(WIDE_COSTS, steps, strict=True)) < 4 * max(WIDE_COSTS)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_score_that_is_no_number_is_named(bad: float) -> None:
    with pytest.raises(allocation.BadScores, match="Score 2"):
        allocation.allocate_linear([1.0, 2.0, bad, 3.0], problem_of(16 * sum(WIDE_COSTS)))


def check(kind: str, value: int, low: int = 4, high: int = 8, quantum: int = 4) -> int:
    names = [f"mlp.{place}" for place in range(len(SHAPES))]
    return allocation.check_budget(kind, value, names, SHAPES, Bounds(low, high, quantum), LINEAR)


def test_refusals_say_the_nearest_budget_that_would_do() -> None:
    with pytest.raises(allocation.BudgetTooSmall) as small:
        check("params", 100)
    assert small.value.minimum == 4 * sum(COSTS)
    with pytest.raises(allocation.BudgetTooLarge) as large:
        check("uniform", 65)
    assert large.value.maximum == 8 * sum(COSTS)
    assert check("params", small.value.minimum)
    assert check("params", large.value.maximum)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("percent", 5), allocation.BadBudget),
        (("uniform", 0), allocation.BadBudget),
        (("uniform", 8, 9, 11, 4), allocation.BadBounds),
        (("uniform", 8, -4, 64, 4), allocation.BadBounds),
        (("uniform", 8, 4, 64, 0), allocation.BadQuantum),
    ],
)
def test_nonsense_is_refused(arguments, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(*arguments)


def test_budgets_of_every_kind_mean_the_same() -> None:
    parameters = allocation.budget_parameters("uniform_rank", 16, SHAPES)
    assert allocation.budget_parameters("parameters", parameters, SHAPES) == parameters
    assert allocation.budget_parameters("bytes", 2 * parameters, SHAPES) == parameters
    assert allocation.budget_parameters("uniform", 16, SHAPES) == parameters


def test_uniform_takes_the_largest_rank_that_fits() -> None:
    assert allocation.allocate_uniform(problem_of(16 * sum(WIDE_COSTS) - 1)) == [3] * 4


def test_patterns_have_one_scale_and_exclusive_keys() -> None:
    pattern = allocation.patterns({"m.1.q": 8, "m.10.q": 4, "m.2.q": 8, "m.1.k": 0, "m.2.k": 8}, scale=2)
    assert (pattern.r, pattern.lora_alpha) == (8, 16)
    assert pattern.rank_pattern == {r"^m\.10\.q": 4}
    assert pattern.alpha_pattern == {r"^m\.10\.q": 8}
    assert pattern.target_modules == ["m.2.k", "q"]


def test_a_plan_reallocates_from_its_scores_through_json() -> None:
    modules = [{"name": f"m.{i}", "shape": list(shape), "score": 4.0 - i} for i, shape in enumerate(SHAPES)]
    known = {"settings": asdict(LINEAR), "rank_min": 4, "rank_max": 8, "quantum": 4, "scale": 2.0}
    first = known | allocation.plan_fields(modules, LINEAR, "uniform", 6, Bounds(4, 8, 4), 2.0)
    stored = json.loads(json.dumps(first))
    assert allocation.reallocate(stored, "uniform", 6) == first
    smaller = allocation.reallocate(stored, "parameters", first["parameters"] - 1)
    assert smaller["parameters"] <= first["parameters"] - 1
    assert smaller["budget"]["kind"] == "parameters"
