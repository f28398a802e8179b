"""The analysis as a whole and its command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_model import make_model, make_tokenizer, save_base_model, sentences, write_jsonl
from training.tars import allocation
from training.tars.__main__ import main
from training.tars.analysis import AnalysisConfig, analyze

CONFIG = AnalysisConfig(budget_value=8, rank_min=2, rank_max=16, quantum=2, samples=12, max_length=32)


def analysis(rows: list[Any] | None = None, reference: list[Any] | None = None, **changes: Any) -> dict[str, Any]:
    config = AnalysisConfig(**{**CONFIG.__dict__, **changes})
    return analyze(make_model(), make_tokenizer(), rows or sentences(20), reference, config).as_dict()


def test_without_a_reference_the_score_is_the_sensitivity() -> None:
    found = analysis()
    assert found["divergence_used"] is False
    assert all(module["score"] == module["sensitivity"] > 0 for module in found["modules"])


def test_with_a_reference_the_score_is_the_product() -> None:
    found = analysis(reference=[{"text": "law law law article"}])
    assert found["divergence_used"] is True
    for module in found["modules"]:
        assert module["score"] == pytest.approx(module["sensitivity"] * module["divergence"])


def test_the_plan_spends_the_budget_and_no_more() -> None:
    found = analysis()
    spent = sum(allocation.cost(module["shape"]) * module["rank"] for module in found["modules"])
    assert spent == found["parameters"] <= found["budget"]["parameters"]
    assert found["budget"]["parameters"] - spent < 2 * 40
    assert not any("head" in module["name"] for module in found["modules"])


def test_batch_size_does_not_change_the_plan() -> None:
    assert analysis(batch_size=1)["rank_pattern"] == analysis(batch_size=5)["rank_pattern"]


def test_the_stored_scores_give_the_same_plan_again() -> None:
    found = json.loads(json.dumps(analysis()))
    assert allocation.reallocate(found, "uniform_rank", 8) == found


def test_a_few_sequences_are_no_sample() -> None:
    assert analysis(rows=sentences(4))["verdict"] == "sample_too_small"


def test_a_budget_near_a_bound_leaves_nothing_to_plan() -> None:
    found = analysis(budget_value=16)
    assert {module["rank"] for module in found["modules"]} == {16}
    assert found["verdict"] in ("uniform_as_good", "sample_too_small")


def test_uniform_needs_no_pass() -> None:
    found = analysis(preset="uniform", budget_value=8)
    assert {module["rank"] for module in found["modules"]} == {8}
    assert found["rank_pattern"] == {}
    assert (found["verdict"], found["stability"]) == ("uniform_as_good", None)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tars")
    return {
        "model": save_base_model(folder / "base"),
        "data": write_jsonl(folder / "data.jsonl", sentences(20)),
        "reference": write_jsonl(folder / "reference.jsonl", sentences(20, seed=9)),
    }


def command(files: dict[str, Path], out: Path, **changes: object) -> list[str]:
    flags: dict[str, object] = {
        **files, "budget": "uniform:8", "rank-min": 2, "rank-max": 16, "quantum": 2, "samples": 12, "max-length": 32,
        "threads": 1, "events": out.with_suffix(".events"), "out": out, **changes,
    }  # fmt: skip
    return [str(part) for name, value in flags.items() for part in (f"--{name}", value)]


def events_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.with_suffix(".events").read_text().splitlines()]


def test_the_same_seed_writes_the_same_plan(files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for name in ("one.json", "two.json"):
        assert main(command(files, tmp_path / name)) == 0
        plan = json.loads((tmp_path / name).read_bytes())
        texts.append((tmp_path / name).read_text().replace(f'"seconds": {plan["seconds"]}', ""))
    assert texts[0] == texts[1]
    assert "parameters" in capsys.readouterr().out
    progress = events_of(tmp_path / "one.json")
    assert [event["kind"] for event in progress] == ["progress"] * len(progress)
    assert progress[-1]["step"] == progress[-1]["total"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": "params:10"}, "--budget: The budget of 10 parameters is too small"),
        ({"rank-min": 3, "rank-max": 3}, "--rank-min: No multiple of 2"),
        ({"model": "/nowhere"}, "--model: /nowhere"),
        ({"data": "/nowhere.jsonl"}, "--data: /nowhere.jsonl does not exist"),
        ({"reference": "/nowhere.jsonl"}, "--reference: /nowhere.jsonl does not exist"),
        ({"samples": 0}, "--samples: must be at least 1"),
    ],
)
def test_bad_input_is_named(files, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes, said: str) -> None:
    out = tmp_path / "plan.json"
    assert main(command(files, out, **changes)) == 2
    assert said in capsys.readouterr().err
    (event,) = events_of(out)
    assert (event["kind"], event["code"]) == ("error", "bad_input")
    assert said in event["message"]
    assert not out.exists()


@pytest.mark.parametrize("budget", ["uniform", "half:3", "params:-1", "params:1e6"])
def test_a_malformed_budget_exits_with_2(files, tmp_path: Path, budget: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(files, tmp_path / "plan.json", budget=budget))
    assert ended.value.code == 2


def test_a_fault_of_ours_exits_with_1(files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.tars.analysis.measure", lambda *_: 1 / 0)
    out = tmp_path / "plan.json"
    assert main(command(files, out)) == 1
    assert events_of(out)[-1] == {
        "kind": "error", "code": "internal", "message": "ZeroDivisionError: division by zero"}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("training.tars", ("django", "torch")),
        ("training.tars.allocation", ("django", "torch")),
        ("training.tars.analysis", ("django", "adapterhub")),
        ("training.recipes", ("django", "torch")),
    ],
)
def test_imports_stay_light(module: str, unwanted: tuple[str, ...]) -> None:
    code = f"import sys, {module}; sys.exit(' '.join(set(sys.modules) & set({unwanted!r})) or 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
