"""The exact allocation against brute force, and greedy against it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.tars import allocation, exact_solver
from training.tars.allocation import Bounds, Problem
from training.tars.presets import Settings

CONCAVE = Settings("spectrum", "none", "concave", rank_min=0)
Small = tuple[list[np.ndarray], list[int], int, list[tuple[int, int]]]


@st.composite
def small(draw: st.DrawFn) -> Small:
    count = draw(st.integers(1, 4))
    ranges = [
        (low, low + draw(st.integers(0, 3)))
        for low in draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    ]
    weights = [draw(st.integers(1, 12)) for _ in range(count)]
    values = [np.cumsum([0.0, *draw(st.lists(st.floats(0, 9), min_size=high, max_size=high))]) for _, high in ranges]
    least = sum(low * weight for (low, _), weight in zip(ranges, weights, strict=True))
    return values, weights, least + draw(st.integers(0, 40)), ranges


def cost_of(steps: Any, weights: list[int]) -> int:
    return int(sum(step * weight for step, weight in zip(steps, weights, strict=True)))


@settings(max_examples=150, deadline=None)
@given(small())
def test_the_optimum_is_that_of_brute_force_for_any_values(problem: Small) -> None:
    values, weights, budget, ranges = problem
    choices = itertools.product(*(range(low, high + 1) for low, high in ranges))
    best = max(exact_solver.total_value(values, steps) for steps in choices if cost_of(steps, weights) <= budget)
    solution = exact_solver.optimum(values, weights, budget, ranges)
    assert cost_of(solution, weights) <= budget
    assert all(low <= step <= high for step, (low, high) in zip(solution, ranges, strict=True))
    assert exact_solver.total_value(values, solution) == pytest.approx(best)
    assert exact_solver.total_value(values, exact_solver.greedy(values, weights, budget, ranges)) <= best + 1e-9


def worthy(name: str, shape: Any, random: np.random.Generator, directions: int) -> dict[str, Any]:
    spectrum = sorted(random.exponential(1, directions).tolist(), reverse=True)
    return {"name": name, "shape": shape, "score": 1.0, "weight": float(random.random()), "spectrum": spectrum}


def test_a_model_of_real_size_is_planned_within_its_budget() -> None:
    """Llama-3.1-8B's shapes: 224 modules."""
    random = np.random.default_rng(0)
    shapes = [(4096, 4096), (1024, 4096), (1024, 4096), (4096, 4096), (14336, 4096), (14336, 4096), (4096, 14336)] * 32
    modules = [
        {
            "name": f"m.{place}",
            "shape": shape,
            "score": 1.0,
            "weight": 1.0,
            "spectrum": sorted(random.exponential(1, 32))[::-1],
        }
        for place, shape in enumerate(shapes)
    ]
    fields = allocation.plan_fields(modules, CONCAVE, "uniform", 16, Bounds(0, 32, 8), 2.0)
    assert 0 <= fields["budget"]["parameters"] - fields["parameters"] < 8 * min(map(sum, shapes))
    assert 0 <= fields["greedy_gap"] < 0.01
    assert fields["serving"] == {"max_lora_rank": 32, "slot_bytes": 32 * 2 * sum(map(sum, shapes))}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4]), st.integers(0, 1))
def test_random_plans_keep_every_promise(seed: int, quantum: int, low: int) -> None:
    random = np.random.default_rng(seed)
    shapes = [tuple(int(side) for side in random.integers(20, 300, 2)) for _ in range(8)]
    names = [f"layers.{place}.{'self_attn.q_proj' if place % 2 else 'mlp.up_proj'}" for place in range(8)]
    bounds = Bounds(low * quantum, 4 * quantum, quantum)
    settings_ = Settings("spectrum", "none", "concave", kinds="mlp", rank_min=bounds.rank_min)
    budget = int(random.integers(2 * quantum * sum(map(sum, shapes[::2])), 3 * quantum * sum(map(sum, shapes[::2]))))
    budget += bounds.rank_min * sum(map(sum, shapes[1::2]))
    modules = [worthy(name, shape, random, 16) for name, shape in zip(names, shapes, strict=True)]
    fields = allocation.plan_fields(modules, settings_, "parameters", budget, bounds, 2.0)
    assert fields["parameters"] <= budget
    ranks = [module["rank"] for module in fields["modules"]]
    assert all(rank % quantum == 0 and bounds.rank_min <= rank <= bounds.rank_max for rank in ranks)
    assert ranks[1::2] == [bounds.rank_min] * 4


def test_an_odd_shape_cannot_blow_up_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_solver, "MOST_CELLS", 500)
    values = [np.arange(5.0) ** 0.5 for _ in range(5)]
    weights, ranges = [1009, 1013, 1019, 1021, 1031], [(0, 4)] * 5
    solution = exact_solver.optimum(values, weights, 9000, ranges)
    assert cost_of(solution, weights) <= 9000
    assert exact_solver.total_value(values, solution) >= 0.9 * exact_solver.total_value(
        values, exact_solver.greedy(values, weights, 9000, ranges)
    )


def test_the_smaller_side_caps_a_rank() -> None:
    problem = Problem.of(["a", "b"], [(100, 6), (100, 100)], 5_000, Bounds(0, 32, 4), "all")
    assert problem.highs.tolist() == [1, 8]
