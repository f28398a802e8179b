"""Verdict on a plan's quality, in words that claim no more than docs/benchmarks.md measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.tars import allocation
from training.tars.presets import PRESETS, Settings, is_open

FEWEST_SEQUENCES = 8
STABLE = 0.7
# A plan that moves a smaller share of its parameters away from a uniform rank counts as uniform.
SAME = 0.05
EVERYWHERE = {"all": "everywhere", "mlp": "in every MLP module", "attention": "in every attention module"}
TEXTS = {
    "follow_plan": "Both halves of the sample rank the modules alike (stability {stability:.2f}): the plan is no "
    "accident of the sample. {measured}",
    "uniform_as_good": "The plan hardly differs from the same rank {everywhere}: take that.",
    "sample_too_small": "The sample of {sequences} sequences is too small (stability {stability:.2f}): add samples, or "
    "take the same rank {everywhere}.",
}
NOT_MEASURED = "Whether it beats uniform ranks only a run of each can tell."
# Results of the unchanged presets; plans with an overridden part were not measured.
MEASURED = {
    "default": "Where it was measured, this preset did as well as the same rank in every MLP module with the same "
    "start values, not better: expect its gain from the MLP and the start values, not from the ranks by layer.",
    "seed": "Where it was measured, this preset did worse than the same rank in every MLP module: prefer the default "
    "preset.",
}


RACE_TEXTS = {
    "race_won": "The race was won by {winner} over {peer} ({between}). {advice}",
    "no_difference": "The race shows no difference between {winner} and {peer} ({between}); the plan takes the smaller "
    "one: {chosen}. {advice}",
    "unrivalled": "The race was won by {winner}; no other kind of plan reached its last round. {advice}",
}
KINDS = {"all": "ranks in all linear modules", "mlp": "ranks in the MLP", "attention": "ranks in attention"}
RACE_MEASURED = "The race is new: docs/benchmarks.md says how near its plans came to a full sweep."


def of_race(race: Mapping[str, Any]) -> tuple[str, str]:
    """Return the verdict on a race and a text that explains it: winner, runner-up and interval.

    It is race_won, no_difference, or unrivalled if one kind of plan alone ended the race.
    """
    candidates, difference = race["candidates"], race["difference"]
    if difference is None:
        verdict, peer, between = "unrivalled", "", ""
    else:
        verdict = "no_difference" if race["no_difference"] else "race_won"
        peer = called(candidates[race["runner_up"]])
        mean, low, high = (-difference[name] for name in ("mean", "high", "low"))
        between = f"{mean:.2f} % better, 95 %: {low:.2f} to {high:.2f}"
    text = RACE_TEXTS[verdict].format(
        winner=called(candidates[race["winner"]]),
        peer=peer,
        between=between,
        chosen=called(candidates[race["chosen"]]),
        advice="For {run_steps} steps it advises the rate {advised:g}. {measured}".format(
            **race["rate"], measured=RACE_MEASURED
        ),
    )
    return verdict, text


def called(candidate: Mapping[str, Any]) -> str:
    """Return a candidate's name in words, without its rate."""
    start = " with start values" if candidate["start_values"] else ""
    share = "" if candidate["share"] == 1 else f" for {candidate['share']:.0%} of the budget"
    return f"{KINDS[candidate['kinds']]} ({candidate['rank']}{start}{share})"


def of(
    modules: Sequence[Mapping[str, Any]], stability: float | None, sequences: int, settings: Settings
) -> tuple[str, str]:
    """Return the verdict and a text that explains it. `modules` are {name, shape, divergence, rank}.

    The verdict is sample_too_small, uniform_as_good or follow_plan. A stability of None counts as stable.
    """
    if stability is not None and (sequences < FEWEST_SEQUENCES or stability < STABLE):
        verdict = "sample_too_small"
    else:
        verdict = "uniform_as_good" if moved_share(modules, settings) < SAME else "follow_plan"
    text = TEXTS[verdict].format(
        stability=stability or 0.0,
        sequences=sequences,
        everywhere=EVERYWHERE[settings.kinds],
        measured=measured(modules, settings),
    )
    return verdict, text


def measured(modules: Sequence[Mapping[str, Any]], settings: Settings) -> str:
    """Return a sentence on the measured results of the preset with these settings, or one that says there are none."""
    without_reference = settings.divergence != "none" and all(module["divergence"] is None for module in modules)
    known = {} if without_reference else MEASURED
    return next((text for name, text in known.items() if PRESETS[name] == settings), NOT_MEASURED)


def moved_share(modules: Sequence[Mapping[str, Any]], settings: Settings) -> float:
    """Return the share (0 to 1) of the planned parameters that the plan places elsewhere than a uniform rank would.

    Modules that the `kinds` leave out do not count: that is the preset's choice, not a result.
    """
    planned = [module for module in modules if is_open(module["name"], settings.kinds)]
    costs = [allocation.cost(module["shape"]) for module in planned]
    ranks = [module["rank"] for module in planned]
    parameters = sum(price * rank for price, rank in zip(costs, ranks, strict=True))
    if not parameters:
        return 0.0
    mean = parameters / sum(costs)
    moved = sum(price * abs(rank - mean) for price, rank in zip(costs, ranks, strict=True))
    return float(moved / (2 * parameters))
