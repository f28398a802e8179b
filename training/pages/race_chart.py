"""The race of a rank analysis for the page of its plan: the bracket of candidates, and a curve of losses by rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from adapterhub import charts
from training.tars.verdict import called

FRAME = charts.Frame(640, 220, 44)
# A chart's axis takes whole numbers: rates stand on it as their logarithm in thousandths.
PARTS = 1000


def race_of(plan: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the race of a plan for a template: rounds, rows by recipe, and the curves; None without a race."""
    race = plan.get("race")
    if not race:
        return None
    rounds = sorted({each["steps"] for candidate in race["candidates"] for each in candidate["rounds"]})
    return {
        **race,
        "rounds": rounds,
        "bracket": [row_of(race, place, rounds) for place in range(len(race["candidates"]))],
        "curves": curves_of(race, rounds[0]),
        "spent": race["tokens"]["trained"] + race["tokens"]["scored"] // 2,
    }


def row_of(race: Mapping[str, Any], place: int, rounds: list[int]) -> dict[str, Any]:
    """Return the candidate at index `place` as a row of the race's table.

    `losses` has {was_in, loss} for each of the `rounds`, which are given by their steps; the loss is None where the
    candidate was not in the round, or got no finite loss. Flags say if it won, came second, or was chosen.
    """
    candidate = race["candidates"][place]
    losses = {each["steps"]: each["loss"] for each in candidate["rounds"]}
    return {
        "name": called(candidate),
        "rate": candidate["rate"],
        "losses": [{"was_in": steps in losses, "loss": losses.get(steps)} for steps in rounds],
        "is_winner": place == race["winner"],
        "is_runner_up": place == race["runner_up"],
        "is_chosen": place == race["chosen"],
    }


def curves_of(race: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """Return the chart of the losses after `steps` steps, the first round's, by rate, with a line for each recipe.

    None unless a recipe has losses at two rates or more.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for candidate in race["candidates"]:
        for each in candidate["rounds"]:
            if each["steps"] == steps and each["loss"] is not None:
                at = round(PARTS * math.log10(candidate["rate"]))
                lines.setdefault(called(candidate), []).append((at, each["loss"]))
    series = [sorted(known) for known in lines.values()]
    if not any(len(known) > 1 for known in series):
        return None
    chart = charts.overlay(FRAME, series)
    rates = sorted({candidate["rate"] for candidate in race["candidates"]})
    return {**chart, "names": list(lines), "lowest_rate": rates[0], "highest_rate": rates[-1]}
