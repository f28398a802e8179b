"""The preset race: what it tries, what it may cost, what it says, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_model import make_model, make_tokenizer, save_base_model, sentences, write_jsonl
from training.lm.token_sequences import TokenSequence
from training.tars import allocation, verdict
from training.tars.__main__ import main
from training.tars.allocation import Bounds, BudgetTooSmall
from training.tars.analysis import analyze
from training.tars.config import AnalysisConfig
from training.tars.presets import BadSettings
from training.tars.race import candidates, contest, outcome
from training.tars.race.candidates import Recipe
from training.tars.race.contest import AllDiverged, Cost, RaceTooShort, Rows, Run, TooFewRows

CONFIG = AnalysisConfig(
    budget_value=4,
    rank_max=8,
    quantum=2,
    samples=8,
    max_length=24,
    preset="race",
    run_steps=160,
    race_rates=(3e-3, 1e-2, 3e-2),
)


def raced(**changes: Any) -> Any:
    rows = changes.pop("rows", sentences(90))
    return analyze(make_model(), make_tokenizer(), rows, None, replace(CONFIG, **changes))


def test_the_winner_is_the_plan_and_the_race_its_evidence() -> None:
    reports: list[tuple[int, int]] = []
    costs: list[Cost] = []
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = analyze(
        model, make_tokenizer(), sentences(90), None, CONFIG, lambda *step: reports.append(step), costs.append
    )
    race = plan.race
    assert race is not None
    chosen, rounds = race["candidates"][race["chosen"]], [len(each["rounds"]) for each in race["candidates"]]
    assert sorted(rounds) == [2] * 6
    ranks = {module["name"]: module["rank"] for module in plan.modules if module["rank"]}
    assert set(ranks.values()) == {chosen["rank"]}
    assert sum(allocation.cost(m["shape"]) * m["rank"] for m in plan.modules) == chosen["parameters"]
    assert set(plan.init) == (set(ranks) if chosen["start_values"] else set())
    assert plan.learning_rate == race["rate"]["advised"]
    ends = {place: each["rounds"][-1]["loss"] for place, each in enumerate(race["candidates"])}
    assert race["winner"] == min(ends, key=lambda place: ends[place])
    assert all(loss < race["base_loss"] for loss in ends.values())
    assert race["tokens"]["trained"] + race["tokens"]["scored"] / 2 <= race["tokens"]["allowed"]
    assert race["tokens"]["allowed"] == costs[0].allowed <= 0.15 * race["tokens"]["run"]
    assert race["rows"]["scored"] >= contest.FEWEST_SCORED
    assert reports[-1][0] == reports[-1][1]
    assert [step for step, _ in reports] == sorted(step for step, _ in reports)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert json.loads(json.dumps(plan.as_dict()))["race"] == race
    other = allocation.reallocate(json.loads(json.dumps(plan.as_dict())), "uniform_rank", 2)
    assert other["parameters"] < plan.parameters


@pytest.mark.slow
def test_the_same_seed_races_alike_however_many_train_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one = raced().race
    monkeypatch.setattr("training.tars.race.result.CPU_AT_ONCE", 6)
    other = raced().race
    for each, peer in zip(one["candidates"], other["candidates"], strict=True):
        assert [r["loss"] for r in each["rounds"]] == pytest.approx([r["loss"] for r in peer["rounds"]], rel=1e-4)


@pytest.mark.slow
def test_a_rate_that_diverges_loses_and_says_so() -> None:
    race = raced(race_rates=(1e-2, 1e30)).race
    wild = [each for each in race["candidates"] if each["rate"] == 1e30]
    assert all(each["diverged"] and each["rounds"][0]["loss"] is None for each in wild)
    assert race["candidates"][race["winner"]]["rate"] == 1e-2
    assert race["rate"]["advised"] == 1e-2
    with pytest.raises(AllDiverged, match="name lower race_rates"):
        raced(race_rates=(1e30,))


def test_what_a_race_cannot_do_is_refused() -> None:
    with pytest.raises(TooFewRows, match="10 have a token to predict: add rows"):
        raced(rows=sentences(10))
    with pytest.raises(RaceTooShort, match="raise race_share or run_steps"):
        raced(run_steps=5)
    with pytest.raises(BudgetTooSmall):
        raced(budget_value=1)
    with pytest.raises(BadSettings, match="race_share is 2"):
        raced(race_share=2.0)
    with pytest.raises(BadSettings, match="The race decides this"):
        raced(kinds="all")


def test_rows_that_score_are_not_trained_on() -> None:
    same = [TokenSequence([5, 6, 7], [5, 6, 7])] * 3
    others = [TokenSequence([5, 6, place], [5, 6, place]) for place in range(60)]
    rows = Rows.of([*same, *others, *same], 0, torch.device("cpu"))
    trained = {tuple(row.ids) for row in rows.train}
    assert not trained & {tuple(row.ids) for row in rows.scored}
    assert len(rows.scored) >= contest.FEWEST_SCORED


def test_the_schedule_is_that_of_the_run_at_any_length() -> None:
    run = Run(100, 8, "cosine", 0.1)
    for steps in (20, 40):
        factors = [run.factor(step, steps) for step in range(steps)]
        assert max(factors) == 1.0
        assert factors[0] == 10 / steps
        assert factors[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * (1 - 1 / (0.9 * steps)))))
    assert [Run(4, 1).factor(step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_more_tokens_allow_more_recipes_and_longer_rounds() -> None:
    rows = Rows.of([TokenSequence([5, 6, 7, place], [5] * 4) for place in range(60)], 0, torch.device("cpu"))
    costs = [Cost.of(Run(steps, 8), 0.15, rows, 6, 4) for steps in (200, 600, 6000)]
    assert [cost.recipes for cost in costs] == sorted(cost.recipes for cost in costs)
    assert costs[0].recipes < costs[-1].recipes == 6
    assert costs[-1].steps > costs[0].steps >= contest.FEWEST_STEPS


def test_candidates_stay_within_their_share_of_the_budget() -> None:
    shapes = {f"layers.{n}.{kind}": (32, 16) for n in range(2) for kind in ("self_attn.q_proj", "mlp.up_proj")}
    field = candidates.field(shapes, 8 * 4 * 48, Bounds(0, 32, 2), (1e-3, 2e-3))
    by_recipe = {each.recipe: each for each in field}
    assert len(field) == 2 * len(by_recipe)
    assert by_recipe[Recipe("all")].ranks == dict.fromkeys(shapes, 8)
    assert set(by_recipe[Recipe("mlp")].ranks.values()) == {16}
    assert by_recipe[Recipe("mlp", True, 0.5)].parameters * 2 == by_recipe[Recipe("mlp", True)].parameters
    assert all(each.parameters <= 8 * 4 * 48 for each in field)
    assert candidates.rates_of(576) == (1e-3, 2e-3, 4e-3, 8e-3)
    assert candidates.rates_of(4096)[1] == 2.8e-4


def test_the_interval_and_the_rate() -> None:
    weights = np.ones(12)
    losses = np.linspace(1, 2, 12)
    assert outcome.difference(losses, losses, weights) == outcome.Difference(0.0, 0.0, 0.0)
    clear = outcome.difference(losses * 0.9, losses, weights)
    assert clear.mean == pytest.approx(-10)
    assert not clear.includes_zero
    noisy = losses + np.tile([0.2, -0.2], 6)
    assert outcome.difference(noisy, losses, weights).includes_zero
    assert outcome.best_rate({1e-3: 2.1, 2e-3: 2.0, 4e-3: 2.1}) == pytest.approx(2e-3)
    assert 2e-3 < (outcome.best_rate({1e-3: 2.2, 2e-3: 2.0, 4e-3: 2.1}) or 0.0) < 4e-3
    assert outcome.best_rate({1e-3: 2.2, 2e-3: 2.1, 4e-3: 2.0, 8e-3: math.inf}) == 4e-3
    assert outcome.best_rate({1e-3: math.inf}) is None
    assert outcome.advised([1e-3, 4e-3]) == pytest.approx(2e-3)


def test_no_difference_is_said_and_the_smaller_one_taken() -> None:
    each = {"kinds": "mlp", "start_values": True, "share": 1.0, "rank": 12}
    race = {
        "candidates": [each, {**each, "share": 0.5, "rank": 6}],
        "winner": 0,
        "runner_up": 1,
        "chosen": 1,
        "difference": {"mean": -0.1, "low": -0.4, "high": 0.2},
        "no_difference": True,
        "rate": {"advised": 2e-3, "run_steps": 600},
    }
    code, text = verdict.of_race(race)
    assert code == "no_difference"
    assert "no difference between ranks in the MLP (12 with start values)" in text
    assert "the smaller one: ranks in the MLP (6 with start values for 50% of the budget)" in text
    assert "0.10 % better, 95 %: -0.20 to 0.40" in text
    code, text = verdict.of_race({**race, "no_difference": False})
    assert (code, "The race was won by" in text) == ("race_won", True)


@pytest.mark.slow
def test_the_command_states_the_cost_and_prints_the_race(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base_model(tmp_path / "base")
    data = write_jsonl(tmp_path / "rows.jsonl", sentences(90))
    flags = ["--model", str(base), "--data", str(data), "--preset", "race", "--budget", "uniform:4", "--rank-max", "8"]
    flags += ["--quantum", "2", "--samples", "8", "--max-length", "24", "--threads", "1", "--out"]
    end = [str(tmp_path / "plan.json"), "--race-rates", "3e-3,1e-2"]
    assert main([*flags, *end, "--run-steps", "160"]) == 0
    printed = capsys.readouterr()
    assert "15% of the run's" in printed.err
    assert "winner" in printed.out
    assert json.loads((tmp_path / "plan.json").read_text())["race"]["rate"]["run_steps"] == 160
    assert main([*flags, *end, "--run-steps", "3"]) == 2
    assert "--race-share: The race may read" in capsys.readouterr().err
