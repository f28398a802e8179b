"""Rank analysis: measures signals of every module on the task's data, then allocates the ranks of the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from training.lm.token_sequences import Row
from training.tars import allocation, verdict
from training.tars.allocation import Bounds
from training.tars.config import AnalysisConfig
from training.tars.presets import Settings, is_open
from training.tars.probed_rates import lowest_rate
from training.tars.race.contest import Cost
from training.tars.race.result import Race, Raced
from training.tars.sample import Sample
from training.tars.scores import Scores, measure

Progress = Callable[[int, int], None]


class NoLinearModules(ValueError):
    """Raised if the model has no linear module for a LoRA, a requested one does not exist, or two share a weight."""


@dataclass(frozen=True)
class Analysis:
    """A plan and its evidence; `as_dict` is the content of plan.json.

    `init` is A (rank_max, in) by module, or empty. `stability` is the rank correlation of the scores of the sample's
    two halves, or None. `learning_rate` is the one of the probe's constant rates that had the lowest loss, None without
    a probe; the best rate of a whole run may be another. After a race it is the rate that the race advises, and `race`
    has its candidates, losses and tokens. `seconds` is the time that the analysis took.
    """

    preset: str
    settings: dict[str, Any]
    rank_min: int
    rank_max: int
    quantum: int
    scale: float
    modules: list[dict[str, Any]]
    r: int
    lora_alpha: int | float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, int | float]
    target_modules: list[str]
    parameters: int
    budget: dict[str, Any]
    serving: dict[str, int]
    greedy_gap: float | None
    divergence_used: bool
    learning_rate: float | None
    probes: list[dict[str, float | None]]
    stability: float | None
    sequences: int
    verdict: str
    verdict_text: str
    seconds: float = field(compare=False)
    race: dict[str, Any] | None = None
    init: dict[str, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the analysis as a JSON object, without the start values."""
        return asdict(self, dict_factory=lambda pairs: {name: value for name, value in pairs if name != "init"})


def analyze(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[Row],
    reference: Sequence[Row] | None = None,
    config: AnalysisConfig | None = None,
    progress: Progress = lambda step, total: None,
    before_race: Callable[[Cost], None] = lambda cost: None,
) -> Analysis:
    """Plan the rank of every linear module of `model` except its head, for the task's `rows`.

    Without `reference` no divergence is measured, and the result says so. `progress` gets (work done, work in all),
    `before_race` the cost of a race that is about to begin. The model is left as it was. Raises AllocationError for a
    budget that cannot be met, BadSettings, DataError for rows without a token to predict, LossNotFinite, and
    NoLinearModules for a model or names without any; of a race also RaceTooShort, AllDiverged and UnknownArchitecture.
    """
    started = time.monotonic()
    config = config or AnalysisConfig()
    settings = config.settings()
    modules = linear_modules(model, config.target_modules)
    bounds = Bounds(settings.rank_min, config.rank_max, config.quantum)
    shapes = [shape_of(module) for module in modules.values()]
    allocation.check_budget(config.budget_kind, config.budget_value, list(modules), shapes, bounds, settings)
    if config.preset == "uniform":
        return planned(modules, Scores.none(modules), settings, config, bounds, started)
    race = None
    if config.preset == "race":
        race = Race.of(model, modules, dict(zip(modules, shapes, strict=True)), tokenizer, rows, config)
        before_race(race.contest.cost)
    sample = Sample.of(model, tokenizer, rows, reference, config)
    counter = Counter(progress, race.total_steps if race else 0)
    scores = measure(model, modules, sample, settings, config, counter.measured)
    if race is None:
        return planned(modules, scores, settings, config, bounds, started)
    return planned_by_race(race.hold(scores.init, counter.raced), modules, scores, settings, config, started)


@dataclass
class Counter:
    """The progress of an analysis: the work of the signals, then `race` steps; `report` gets (done, in all)."""

    report: Progress
    race: int
    before: int = 0
    done: int = 0

    def measured(self, step: int, total: int) -> None:
        """Report that `step` of `total` of the signals' work is done."""
        self.before = total
        self.report(step, total + self.race)

    def raced(self, steps: int) -> None:
        """Report that `steps` more steps of the race are done."""
        self.done += steps
        self.report(self.before + self.done, self.before + self.race)


def linear_modules(model: nn.Module, wanted: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Return the linear modules by full name in the model's order, without the output head and modules tied to it.

    `wanted` are last parts of names; None takes all. Raises NoLinearModules if there are none, if a wanted one does not
    exist, or if two share a weight.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and (head is None or module.weight is not head.weight)
    }
    if not linear:
        raise NoLinearModules(
            f"{type(model).__name__} has no linear module besides its head, so LoRA has nothing to adapt: take a base "
            "model that is built of linear modules."
        )
    if wanted is not None and not wanted:
        raise NoLinearModules("target_modules is empty: name at least one module, or leave it out to adapt all.")
    last_names = {name.rsplit(".", 1)[-1] for name in linear}
    for name in wanted or ():
        if name not in last_names:
            raise NoLinearModules(f"No linear module is named {name!r}; the names are {', '.join(sorted(last_names))}.")
    wanted_names = set(last_names if wanted is None else wanted)
    chosen = {name: module for name, module in linear.items() if name.rsplit(".", 1)[-1] in wanted_names}
    require_unshared(chosen)
    return chosen


def require_unshared(modules: dict[str, nn.Module]) -> None:
    """Raise NoLinearModules that names both if two modules share a weight, as each would get a rank."""
    owner_of: dict[int, str] = {}
    for name, module in modules.items():
        first = owner_of.setdefault(id(module.weight), name)
        if first != name:
            raise NoLinearModules(f"{first} and {name} share one weight: leave one out of target_modules.")


def shape_of(module: nn.Module) -> list[int]:
    """Return [out, in] of a linear module from its features: a 4-bit module's packed weight has another shape."""
    return [int(module.out_features), int(module.in_features)]  # type: ignore[arg-type]


def json_loss(loss: float) -> float | None:
    """Return the loss to six decimals; None for an infinite or NaN one, which JSON cannot hold."""
    return round(loss, 6) if math.isfinite(loss) else None


def planned_by_race(
    raced: Raced,
    modules: dict[str, nn.Module],
    scores: Scores,
    settings: Settings,
    config: AnalysisConfig,
    started: float,
) -> Analysis:
    """Return the plan of the chosen candidate: its kinds, budget, start values and rate, with the race as evidence."""
    recipe = raced.recipe
    shapes = [shape_of(module) for module in modules.values()]
    budget = allocation.budget_parameters(config.budget_kind, config.budget_value, shapes)
    if recipe.share < 1:
        config = replace(config, budget_kind="parameters", budget_value=int(budget * recipe.share))
    decided = replace(settings, kinds=recipe.kinds, init="gradient" if recipe.start_values else "none")
    scores.init = {
        name: start for name, start in scores.init.items() if recipe.start_values and is_open(name, recipe.kinds)
    }
    bounds = Bounds(settings.rank_min, config.rank_max, config.quantum)
    plan = planned(modules, scores, decided, config, bounds, started)
    code, text = verdict.of_race(raced.as_dict)
    return replace(plan, learning_rate=raced.rate, race=raced.as_dict, verdict=code, verdict_text=text)


def planned(
    modules: dict[str, nn.Module],
    scores: Scores,
    settings: Settings,
    config: AnalysisConfig,
    bounds: Bounds,
    started: float,
) -> Analysis:
    """Allocate the ranks by the scores and return the analysis.

    `started` is the time.monotonic() at which the analysis began. Raises AllocationError for a budget that the bounds
    cannot meet.
    """
    described = [{"name": name, "shape": shape_of(module), **scores.of(name)} for name, module in modules.items()]
    fields = allocation.plan_fields(described, settings, config.budget_kind, config.budget_value, bounds, config.scale)
    stability = scores.stability()
    probes = [{"rate": probe.rate, "loss": json_loss(probe.reached)} for probe in scores.probes]
    judged = verdict.of(fields["modules"], stability, scores.sequences, settings)
    return Analysis(
        preset=config.preset,
        settings=asdict(settings),
        **asdict(bounds),
        scale=config.scale,
        **fields,
        divergence_used=scores.divergence_used,
        learning_rate=lowest_rate(probes),
        probes=probes,
        stability=stability,
        sequences=scores.sequences,
        verdict=judged[0],
        verdict_text=judged[1],
        seconds=round(time.monotonic() - started, 3),
        init=scores.init,
    )
