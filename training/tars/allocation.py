"""From scores and a budget to ranks and a PEFT rank pattern. numpy and scipy only: the web process plans with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BYTES_PER_PARAMETER = 2
# The words of the command line and those of a stored plan mean the same.
BUDGET_KINDS = {"uniform": "uniform_rank", "params": "parameters", "bytes": "bytes"}
PRESETS = ("seed", "uniform")

Shape = Sequence[int]  # [out, in]


class AllocationError(ValueError):
    """The ranks asked for do not exist; `field` is what to change."""

    field = "budget"


class BudgetTooSmall(AllocationError):
    def __init__(self, budget: int, minimum: int) -> None:
        super().__init__(f"The budget of {budget:,} parameters is too small: rank_min everywhere needs {minimum:,}.")
        self.minimum = minimum


class BudgetTooLarge(AllocationError):
    def __init__(self, budget: int, maximum: int) -> None:
        super().__init__(f"The budget of {budget:,} parameters is too large: rank_max everywhere takes {maximum:,}.")
        self.maximum = maximum


class BadBudget(AllocationError):
    """The kind of budget is unknown or its value is not positive."""


class BadBounds(AllocationError):
    """No multiple of the quantum lies between rank_min and rank_max."""

    field = "rank_min"


class BadScores(AllocationError):
    """A score is negative or not finite."""

    field = "scores"


@dataclass(frozen=True)
class RankPattern:
    """The fields of a PEFT LoraConfig that give each module its rank, all at one effective scale alpha / r."""

    r: int
    lora_alpha: int | float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, int | float]
    target_modules: list[str]


def cost(shape: Shape) -> int:
    """Parameters of one rank: a row of A and a column of B."""
    return shape[0] + shape[1]


def budget_parameters(kind: str, value: int, shapes: Iterable[Shape]) -> int:
    """The budget in LoRA parameters; kind uniform_rank (or uniform), parameters (or params), or bytes in bfloat16."""
    kind = BUDGET_KINDS.get(kind, kind)
    if kind not in BUDGET_KINDS.values():
        raise BadBudget(f"The budget's kind is {kind!r}; it must be one of {', '.join(BUDGET_KINDS.values())}.")
    if value < 1:
        raise BadBudget(f"The budget is {value}; it must be at least 1.")
    if kind == "uniform_rank":
        return value * sum(cost(shape) for shape in shapes)
    return value if kind == "parameters" else value // BYTES_PER_PARAMETER


def levels(rank_min: int, rank_max: int, quantum: int) -> tuple[int, int]:
    """The bounds in whole quanta. Raises BadBounds."""
    if quantum < 1 or rank_min < 0:
        raise BadBounds(f"quantum is {quantum} and rank_min {rank_min}; they must be at least 1 and 0.")
    low, high = -(-rank_min // quantum), rank_max // quantum
    if high < max(low, 1):
        raise BadBounds(f"No multiple of {quantum} lies between rank_min {rank_min} and rank_max {rank_max}.")
    return low, high


def check_budget(kind: str, value: int, shapes: Sequence[Shape], rank_min: int, rank_max: int, quantum: int) -> int:
    """The budget in parameters. Raises what an allocation of it would raise."""
    budget = budget_parameters(kind, value, shapes)
    check_parameters(budget, sum(cost(shape) for shape in shapes), rank_min, rank_max, quantum)
    return budget


def check_parameters(budget: int, cost_of_a_rank: int, rank_min: int, rank_max: int, quantum: int) -> None:
    low, high = levels(rank_min, rank_max, quantum)
    if budget < (minimum := low * quantum * cost_of_a_rank):
        raise BudgetTooSmall(budget, minimum)
    if budget > (maximum := high * quantum * cost_of_a_rank):
        raise BudgetTooLarge(budget, maximum)


def allocate_linear(
    scores: Sequence[float], costs: Sequence[int], budget: int, rank_min: int, rank_max: int, quantum: int
) -> list[int]:
    """Ranks that maximise sum(score * rank) with sum(cost * rank) <= budget, in multiples of the quantum.

    An integer programme; the objective is the published one, so most ranks end at a bound.
    Raises BadScores, BadBounds, BudgetTooSmall, BudgetTooLarge.
    """
    check_parameters(budget, sum(costs), rank_min, rank_max, quantum)
    low, high = levels(rank_min, rank_max, quantum)
    values, weights = normalised(scores, costs), np.asarray(costs, dtype=np.int64)
    spare = budget // quantum - low * int(weights.sum())
    steps = solve(values, weights, spare, high - low)
    return [int(low + step) * quantum for step in steps]


def normalised(scores: Sequence[float], costs: Sequence[int]) -> NDArray[np.float64]:
    """Scores in (0, 1], so that the solver's tolerances fit. Without any signal each parameter is worth the same."""
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise BadScores(f"Score {int(np.argmax(~(values >= 0) | np.isinf(values)))} is not a finite number >= 0.")
    if values.max(initial=0.0) == 0.0:
        values = np.asarray(costs, dtype=np.float64)
    floored: NDArray[np.float64] = np.maximum(values / values.max(), 1e-6)
    return floored


def solve(values: NDArray[np.float64], weights: NDArray[np.int64], capacity: int, most: int) -> NDArray[np.int64]:
    """Whole steps in [0, most] that maximise values @ steps with weights @ steps <= capacity."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    scale = float(weights.mean())
    found = milp(
        -values,
        integrality=np.ones(len(values), dtype=np.int64),
        bounds=Bounds(0, most),
        constraints=LinearConstraint(weights[None, :] / scale, ub=capacity / scale),
        options={"mip_rel_gap": 1e-6, "node_limit": 2000},
    )
    steps = np.zeros(len(values)) if found.x is None else found.x
    return filled(np.rint(steps).astype(np.int64), values / weights, weights, capacity, most)


def filled(
    steps: NDArray[np.int64], worth: NDArray[np.float64], weights: NDArray[np.int64], capacity: int, most: int
) -> NDArray[np.int64]:
    """Undo what the solver's tolerance overspent, then spend what is left on the best worth that still fits."""
    order = np.argsort(-worth, kind="stable")
    left = capacity - int(weights @ steps)
    for module in order[::-1]:
        while left < 0 and steps[module] > 0:
            steps[module] -= 1
            left += int(weights[module])
    for module in order:
        more = min(left // int(weights[module]), most - int(steps[module]))
        steps[module] += more
        left -= int(more * weights[module])
    return steps


def allocate_uniform(costs: Sequence[int], budget: int, rank_min: int, rank_max: int, quantum: int) -> list[int]:
    """The same rank everywhere: the largest multiple of the quantum that the budget buys. Raises as allocate_linear."""
    check_parameters(budget, sum(costs), rank_min, rank_max, quantum)
    rank = budget // sum(costs) // quantum * quantum
    if rank == 0:
        raise BudgetTooSmall(budget, quantum * sum(costs))
    return [rank] * len(costs)


def allocate(
    preset: str, scores: Sequence[float], costs: Sequence[int], budget: int, rank_min: int, rank_max: int, quantum: int
) -> list[int]:
    """The ranks of a preset: seed or uniform."""
    if preset == "uniform":
        return allocate_uniform(costs, budget, rank_min, rank_max, quantum)
    return allocate_linear(scores, costs, budget, rank_min, rank_max, quantum)


def patterns(ranks: Mapping[str, int], scale: float = 2.0) -> RankPattern:
    """PEFT's pattern for these ranks by full module name; rank 0 leaves a module out.

    Engines that ignore alpha_pattern still scale rightly: alpha / r is `scale` everywhere. Keys are anchored full
    names, because PEFT takes the first key that matches and saves keys sorted. Raises BadBounds when all are 0.
    """
    kept = {name: rank for name, rank in ranks.items() if rank > 0}
    if not kept:
        raise BadBounds("Every module has rank 0: raise the budget or rank_min.")
    top = max(kept.values())
    differing = {"^" + re.escape(name): rank for name, rank in sorted(kept.items()) if rank != top}
    alphas = {key: whole(scale * rank) for key, rank in differing.items()}
    return RankPattern(top, whole(scale * top), differing, alphas, target_modules(ranks))


def whole(number: float) -> int | float:
    return int(number) if float(number).is_integer() else float(number)


def target_modules(ranks: Mapping[str, int]) -> list[str]:
    """Last names where every module of that name is kept, full names elsewhere."""
    left_out = {name.rsplit(".", 1)[-1] for name, rank in ranks.items() if rank == 0}
    short = {name: name.rsplit(".", 1)[-1] for name, rank in ranks.items() if rank > 0}
    return sorted({name if last in left_out else last for name, last in short.items()})


def plan_fields(
    modules: Sequence[dict[str, Any]], preset: str, kind: str, value: int, bounds: Sequence[int], scale: float
) -> dict[str, Any]:
    """What a plan says about ranks: modules with `rank`, the pattern's fields, parameters and budget.

    `modules` are {name, shape, score, ...}; `bounds` are (rank_min, rank_max, quantum). Raises AllocationError.
    """
    costs = [cost(module["shape"]) for module in modules]
    budget = check_budget(kind, value, [module["shape"] for module in modules], *bounds)
    ranks = allocate(preset, [module["score"] for module in modules], costs, budget, *bounds)
    ranked = [{**module, "rank": rank} for module, rank in zip(modules, ranks, strict=True)]
    return {
        "modules": ranked,
        **asdict(patterns({module["name"]: module["rank"] for module in ranked}, scale)),
        "parameters": sum(price * rank for price, rank in zip(costs, ranks, strict=True)),
        "budget": {"kind": BUDGET_KINDS.get(kind, kind), "value": value, "parameters": budget},
    }


def reallocate(plan: Mapping[str, Any], kind: str, value: int) -> dict[str, Any]:
    """The plan for another budget from the stored scores, with the stored preset, bounds and scale."""
    bounds = (plan["rank_min"], plan["rank_max"], plan["quantum"])
    return {**plan, **plan_fields(plan["modules"], plan["preset"], kind, value, bounds, plan["scale"])}
