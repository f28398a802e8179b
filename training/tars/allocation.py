"""Allocation of ranks from scores and a budget, and PEFT's rank pattern.

It needs numpy and scipy alone, so that the web process can use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving_client.vllm_slots import BFLOAT16_BYTES, VLLM_RANKS, slot_bytes
from training.tars import exact_solver
from training.tars.presets import Settings, is_open

# Budget kinds by their names on the command line and in a stored plan.
BUDGET_KINDS = {"uniform": "uniform_rank", "params": "parameters", "bytes": "bytes"}

Shape = Sequence[int]  # [out, in]
Quanta = NDArray[np.int64]


class AllocationError(ValueError):
    """Raised if no allocation is possible as requested; `field` is the setting to change."""

    field = "budget"


class BudgetTooSmall(AllocationError):
    """Raised if the budget is below the least that the bounds allow, which is `minimum` parameters."""

    def __init__(self, budget: int, minimum: int) -> None:
        super().__init__(f"The budget of {budget:,} parameters is too small: these ranks need {minimum:,} at least.")
        self.minimum = minimum


class BudgetTooLarge(AllocationError):
    """Raised if the budget is above the most that the bounds allow, which is `maximum` parameters."""

    def __init__(self, budget: int, maximum: int) -> None:
        super().__init__(f"The budget of {budget:,} parameters is too large: these ranks take {maximum:,} at most.")
        self.maximum = maximum


class BadBudget(AllocationError):
    """Raised if the kind of budget is unknown or its value is below 1."""


class BadBounds(AllocationError):
    """Raised if no multiple of the quantum lies between rank_min and rank_max, or the bounds leave all ranks at 0.

    Also if `rank_min` is negative.
    """

    field = "rank_min"


class BadQuantum(AllocationError):
    """Raised if the quantum is below 1, as ranks cannot be multiples of it."""

    field = "quantum"


class NothingOpen(AllocationError):
    """Raised if no module is of a kind that may have ranks above the minimum."""

    field = "kinds"


class BadScores(AllocationError):
    """Raised if a score is negative or not finite."""

    field = "scores"


@dataclass(frozen=True)
class RankPattern:
    """Fields of a PEFT LoraConfig that give each module its rank, with the same alpha / r everywhere."""

    r: int
    lora_alpha: int | float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, int | float]
    target_modules: list[str]


def cost(shape: Shape) -> int:
    """Return the number of parameters of one rank of a module of shape (out, in): a row of A and a column of B."""
    return shape[0] + shape[1]


def budget_parameters(kind: str, value: int, shapes: Iterable[Shape]) -> int:
    """Convert the budget to a number of LoRA parameters. Raises BadBudget for an unknown kind or a value below 1.

    The kind is uniform_rank (or uniform), parameters (or params), or bytes, with two bytes per parameter (bfloat16).
    """
    kind = BUDGET_KINDS.get(kind, kind)
    if kind not in BUDGET_KINDS.values():
        raise BadBudget(f"The budget's kind is {kind!r}; it must be one of {', '.join(BUDGET_KINDS.values())}.")
    if value < 1:
        raise BadBudget(f"The budget is {value}; it must be at least 1.")
    if kind == "uniform_rank":
        return value * sum(cost(shape) for shape in shapes)
    return value if kind == "parameters" else value // BFLOAT16_BYTES


@dataclass(frozen=True)
class Bounds:
    """Bounds of ranks: multiples of `quantum` from rank_min to rank_max, at most a module's smaller side."""

    rank_min: int
    rank_max: int
    quantum: int

    def of(self, shapes: Sequence[Shape], *, open_to: Sequence[bool]) -> tuple[Quanta, Quanta]:
        """Return the minimum and the maximum number of quanta for every module. Raises BadQuantum and BadBounds.

        A quantum is `quantum` ranks. A module whose `open_to` is False stays at the minimum.
        """
        if self.quantum < 1:
            raise BadQuantum(f"quantum is {self.quantum}; it must be at least 1.")
        if self.rank_min < 0:
            raise BadBounds(f"rank_min is {self.rank_min}; it must be at least 0.")
        low, high = -(-self.rank_min // self.quantum), self.rank_max // self.quantum
        if high < max(low, 1):
            raise BadBounds(
                f"No multiple of {self.quantum} lies between rank_min {self.rank_min} and rank_max {self.rank_max}."
            )
        caps = [max(low, min(high, min(shape) // self.quantum)) for shape in shapes]
        lows = np.full(len(shapes), low, dtype=np.int64)
        highs = np.asarray([cap if free else low for cap, free in zip(caps, open_to, strict=True)], dtype=np.int64)
        return lows, highs


@dataclass(frozen=True)
class Problem:
    """An allocation problem: the budget in parameters, and by module the cost and the bounds.

    `costs` are the parameters of one quantum, `lows` and `highs` the minimum and maximum numbers of quanta.
    """

    costs: Quanta
    lows: Quanta
    highs: Quanta
    budget: int

    @classmethod
    def of(cls, names: Sequence[str], shapes: Sequence[Shape], budget: int, bounds: Bounds, kinds: str) -> Problem:
        """Return the problem for modules of shapes (out, in); modules that are not of the `kinds` stay at the minimum.

        `budget` is in parameters. Raises AllocationError: BadQuantum, BadBounds, NothingOpen, or BudgetTooSmall and
        BudgetTooLarge with the nearest budget that works.
        """
        problem = cls.unbounded(names, shapes, budget, bounds, kinds)
        costs, lows, highs = problem.costs, problem.lows, problem.highs
        if not highs.any():
            others, wanted = ("MLP modules", "attention") if kinds == "attention" else ("attention", "MLP")
            raise NothingOpen(
                f"kinds is {kinds}, but all modules are {others}: set kinds to all, or name {wanted} modules."
            )
        # Where rank 0 is allowed, a plan still needs one quantum somewhere.
        if budget < (minimum := int(costs @ lows) or int(costs[highs > 0].min(initial=costs.max()))):
            raise BudgetTooSmall(budget, minimum)
        if budget > (maximum := int(costs @ highs)):
            raise BudgetTooLarge(budget, maximum)
        return problem

    @classmethod
    def unbounded(
        cls, names: Sequence[str], shapes: Sequence[Shape], budget: int, bounds: Bounds, kinds: str
    ) -> Problem:
        """Return the problem as `of` does, without checking that the budget can be met.

        Raises BadQuantum and BadBounds.
        """
        lows, highs = bounds.of(shapes, open_to=[is_open(name, kinds) for name in names])
        costs = np.asarray([cost(shape) * bounds.quantum for shape in shapes], dtype=np.int64)
        return cls(costs, lows, highs, budget)

    @property
    def spare(self) -> int:
        """Return the parameters of the budget that the minimum ranks leave."""
        return self.budget - int(self.costs @ self.lows)


def check_budget(
    kind: str, value: int, names: Sequence[str], shapes: Sequence[Shape], bounds: Bounds, settings: Settings
) -> int:
    """Return the budget as a number of parameters. Raises the AllocationError that an allocation would raise."""
    budget = budget_parameters(kind, value, shapes)
    Problem.of(names, shapes, budget, bounds, settings.kinds)
    return budget


def allocate_linear(scores: Sequence[float], problem: Problem) -> list[int]:
    """Return the quanta by module that maximise sum(score * quanta) within the budget.

    It solves an integer programme. The objective is the published one, so most ranks end at a bound. Raises BadScores
    for a score that is negative or not finite.
    """
    values = normalised(scores, problem.costs)
    steps = solve(values, problem.costs, problem.spare, problem.highs - problem.lows)
    return [int(low + step) for low, step in zip(problem.lows, steps, strict=True)]


def normalised(scores: Sequence[float], costs: Quanta) -> NDArray[np.float64]:
    """Return the scores scaled to (0, 1] for the solver's tolerances; if all are 0, each parameter is worth the same.

    Raises BadScores for a score that is negative or not finite.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise BadScores(f"Score {int(np.argmax(~(values >= 0) | np.isinf(values)))} is not a finite number >= 0.")
    if values.max(initial=0.0) == 0.0:
        values = np.asarray(costs, dtype=np.float64)
    floored: NDArray[np.float64] = np.maximum(values / values.max(), 1e-6)
    return floored


def solve(values: NDArray[np.float64], weights: Quanta, capacity: int, most: Quanta) -> Quanta:
    """Return integer steps from 0 to `most` that maximise values @ steps subject to weights @ steps <= capacity.

    The solution is exact to a relative gap of 1e-6 unless the search hits its node limit.
    """
    from scipy.optimize import Bounds as Box
    from scipy.optimize import LinearConstraint, milp

    scale = float(weights.mean())
    solution = milp(
        -values,
        integrality=np.ones(len(values), dtype=np.int64),
        bounds=Box(0, most),
        constraints=LinearConstraint(weights[None, :] / scale, ub=capacity / scale),
        options={"mip_rel_gap": 1e-6, "node_limit": 2000},
    )
    steps = np.zeros(len(values)) if solution.x is None else solution.x
    return filled(np.rint(steps).astype(np.int64), values / weights, weights, capacity, most)


def filled(steps: Quanta, gains: NDArray[np.float64], weights: Quanta, capacity: int, most: Quanta) -> Quanta:
    """Remove steps beyond the capacity, lowest gain first, then spend the rest on the highest gains that fit.

    `gains` is the value per parameter. `steps` is changed in place and returned.
    """
    order = np.argsort(-gains, kind="stable")
    free = capacity - int(weights @ steps)
    for module in order[::-1]:
        while free < 0 and steps[module] > 0:
            steps[module] -= 1
            free += int(weights[module])
    for module in order:
        more = min(free // int(weights[module]), int(most[module] - steps[module]))
        steps[module] += more
        free -= int(more * weights[module])
    return steps


def allocate_uniform(problem: Problem) -> list[int]:
    """Return equal quanta for all modules of the kinds, as many as the budget allows, limited by each one's maximum.

    Raises BudgetTooSmall if that is none.
    """
    price = int(problem.costs[problem.highs > 0].sum())
    each = problem.budget // max(price, 1)
    if each == 0 or not price:
        raise BudgetTooSmall(problem.budget, price)
    return [int(steps) for steps in np.minimum(each, problem.highs)]


def allocate_concave(values: exact_solver.Values, problem: Problem) -> tuple[list[int], float]:
    """Return the quanta that maximise the sum of `values`, and the share of that sum that a greedy choice would miss.

    `values` has for each module the worth of 0, 1, ... quanta.
    """
    ranges = list(zip(problem.lows.tolist(), problem.highs.tolist(), strict=True))
    costs = problem.costs.tolist()
    best = exact_solver.optimum(values, costs, problem.budget, ranges)
    gained = [
        exact_solver.total_value(values, steps)
        for steps in (best, exact_solver.greedy(values, costs, problem.budget, ranges))
    ]
    return best, round(1 - gained[1] / gained[0], 6) if gained[0] > 0 else 0.0


def curve(spectrum: Sequence[float], weight: float, power: float, bounds: Bounds) -> NDArray[np.float64]:
    """Return a module's worth of 0, 1, ... quanta up to rank_max.

    It is `weight` * the sum of sigma ** `power` over these ranks. `spectrum` holds the sigmas, descending; missing ones
    count as 0.
    """
    most = bounds.rank_max // bounds.quantum
    padded = np.zeros(most * bounds.quantum)
    leading = np.asarray(spectrum, dtype=np.float64)[: len(padded)]
    padded[: len(leading)] = leading**power
    sums: NDArray[np.float64] = np.concatenate([[0.0], np.cumsum(padded)[bounds.quantum - 1 :: bounds.quantum]])
    return weight * sums


def allocate(modules: Sequence[Mapping[str, Any]], problem: Problem, bounds: Bounds, settings: Settings) -> Chosen:
    """Return the ranks of `modules` ({name, shape, score, weight?, spectrum?}) by the settings' objective.

    Raises BudgetTooSmall (objective uniform) and BadScores (linear).
    """
    if settings.objective == "uniform":
        quanta, gap = allocate_uniform(problem), None
    elif settings.objective == "linear":
        quanta, gap = allocate_linear([module["score"] for module in modules], problem), None
    else:
        values = [curve(module["spectrum"], module["weight"], settings.power, bounds) for module in modules]
        quanta, gap = allocate_concave(values, problem)
    return Chosen([steps * bounds.quantum for steps in quanta], gap)


@dataclass(frozen=True)
class Chosen:
    """The ranks of all modules, and the share of the optimum that a greedy choice would miss; None if not computed."""

    ranks: list[int]
    greedy_gap: float | None


def patterns(ranks: Mapping[str, int], scale: float = 2.0) -> RankPattern:
    """Return PEFT's pattern for these ranks by full module name; rank 0 leaves a module out.

    `r` is the highest rank; only modules that differ from it are listed. alpha / r is `scale` everywhere, so engines
    that ignore alpha_pattern still scale correctly. Keys are anchored full names, because PEFT takes the first key that
    matches and saves keys sorted. Raises BadBounds if all ranks are 0.
    """
    adapted = {name: rank for name, rank in ranks.items() if rank > 0}
    if not adapted:
        raise BadBounds("Every module has rank 0: raise the budget or rank_min.")
    top = max(adapted.values())
    differing = {"^" + re.escape(name): rank for name, rank in sorted(adapted.items()) if rank != top}
    alphas = {key: whole(scale * rank) for key, rank in differing.items()}
    return RankPattern(top, whole(scale * top), differing, alphas, target_modules(ranks))


def whole(number: float) -> int | float:
    """Return the number as an integer if it is a whole number, else as it is."""
    return int(number) if float(number).is_integer() else float(number)


def target_modules(ranks: Mapping[str, int]) -> list[str]:
    """Return the sorted target names of the modules with a rank above 0.

    A name is the last part if no module with that last part has rank 0, else the full name.
    """
    left_out = {name.rsplit(".", 1)[-1] for name, rank in ranks.items() if rank == 0}
    short = {name: name.rsplit(".", 1)[-1] for name, rank in ranks.items() if rank > 0}
    return sorted({name if last in left_out else last for name, last in short.items()})


def serving_cost(shapes: Iterable[Shape], ranks: Sequence[int]) -> dict[str, int]:
    """Return max_lora_rank, vLLM's option for the highest rank, and slot_bytes, an adapter's size in GPU memory.

    The size is in bfloat16. vLLM sizes every adapter's slot by that rank for every module, so one high rank raises the
    memory of all adapters.
    """
    size = next((size for size in VLLM_RANKS if size >= max(ranks, default=0)), max(ranks, default=0))
    return {"max_lora_rank": size, "slot_bytes": slot_bytes(shapes, size)}


def plan_fields(
    modules: Sequence[dict[str, Any]], settings: Settings, kind: str, value: int, bounds: Bounds, scale: float
) -> dict[str, Any]:
    """Allocate the ranks; return the plan's fields that depend on the budget.

    They are the modules with their `rank`, the pattern's fields, parameters, budget, serving cost and greedy gap.
    `modules` are {name, shape, score, ...}. Raises AllocationError for a budget that the bounds cannot meet, and for
    bad scores.
    """
    names, shapes = [module["name"] for module in modules], [module["shape"] for module in modules]
    budget = check_budget(kind, value, names, shapes, bounds, settings)
    chosen = allocate(modules, Problem.of(names, shapes, budget, bounds, settings.kinds), bounds, settings)
    ranks = chosen.ranks
    return {
        "modules": [{**module, "rank": rank} for module, rank in zip(modules, ranks, strict=True)],
        **asdict(patterns(dict(zip(names, ranks, strict=True)), scale)),
        "parameters": sum(cost(shape) * rank for shape, rank in zip(shapes, ranks, strict=True)),
        "budget": {"kind": BUDGET_KINDS.get(kind, kind), "value": value, "parameters": budget},
        "serving": serving_cost(shapes, ranks),
        "greedy_gap": chosen.greedy_gap,
    }


def reallocate(plan: Mapping[str, Any], kind: str, value: int) -> dict[str, Any]:
    """Return the plan for another budget, from its stored signals, settings, bounds and scale.

    Nothing is measured again. Raises AllocationError for a budget that the bounds cannot meet.
    """
    bounds = Bounds(plan["rank_min"], plan["rank_max"], plan["quantum"])
    return {**plan, **plan_fields(plan["modules"], Settings(**plan["settings"]), kind, value, bounds, plan["scale"])}
