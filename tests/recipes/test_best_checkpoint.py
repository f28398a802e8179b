"""Epochs instead of steps, the held-out loss on the way, the best weights, and the early stop."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.runs import events_of, write_inputs, write_run
from tests.tiny_model import write_jsonl


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def run(folder: Path, inputs: dict[str, str], method: str = "lora", **chosen: Any) -> dict[str, Any]:
    path = write_run(folder, inputs, steps=chosen.pop("steps", 30), hyperparameters=chosen)
    assert import_module(f"training.recipes.{method}").main([str(path)]) == 0
    return dict(json.loads((folder / "output" / "result.json").read_bytes()))


def curve(folder: Path) -> dict[int, float]:
    return {event["step"]: event["held_out_loss"] for event in events_of(folder, "metrics") if "held_out_loss" in event}


@pytest.mark.parametrize("packing", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_epochs_are_counted_in_rows(tmp_path: Path, inputs: dict[str, str], packing: int) -> None:
    result = run(tmp_path, inputs, epochs=2, batch_size=8, packing=packing)
    # 60 rows twice in batches of 8.
    assert result["steps"] == 15 if not packing else result["steps"] < 15


# The rate at which each overfits four rows; AdaLoRA's ranks are final from the 15th of 30 steps on.
RATES = {"lora": 0.2, "adalora": 0.6, "galore": 0.1, "full": 0.05}
SETTLED = {"adalora": 15}


@pytest.mark.parametrize(
    "method", [pytest.param(method, marks=[pytest.mark.slow] if method != "lora" else []) for method in RATES]
)
def test_the_version_is_of_the_best_step_and_not_of_the_last(
    method: str, tmp_path: Path, inputs: dict[str, str]
) -> None:
    few = {
        **inputs,
        "train": str(write_jsonl(tmp_path / "few.jsonl", [{"text": "the bank shall report each risk"}] * 4)),
    }
    result = run(tmp_path / "run", few, method, steps=30, eval_steps=2, learning_rate=RATES[method])
    losses = curve(tmp_path / "run")
    assert list(losses) == list(range(2, 31, 2))
    possible = {step: loss for step, loss in losses.items() if step >= SETTLED.get(method, 0)}
    best = min(possible, key=lambda step: possible[step])
    assert result["best_step"] == best < 30
    assert result["loss_after"] == pytest.approx(losses[best], rel=1e-3)


@pytest.mark.slow
def test_a_resumed_run_counts_no_measurement_twice(tmp_path: Path, inputs: dict[str, str]) -> None:
    few = {
        **inputs,
        "train": str(write_jsonl(tmp_path / "few.jsonl", [{"text": "the bank shall report each risk"}] * 4)),
    }
    chosen = {"steps": 60, "eval_steps": 1, "patience": 4, "learning_rate": 0.2, "checkpoint_steps": 2}
    whole = run(tmp_path / "whole", few, **chosen)
    best = whole["best_step"]
    # Killed two steps after the best one, of which both are measured, and the checkpoint is the one before them.
    cut = run(tmp_path / "cut", few, **{**chosen, "patience": 2})
    assert (cut["best_step"], cut["steps"]) == (best, best + 2)
    for mark in (tmp_path / "cut/output/checkpoints").glob("checkpoint-*/complete"):
        if int(mark.parent.name.rpartition("-")[2]) > best:
            mark.unlink()
    again = run(tmp_path / "cut", few, **chosen)
    assert {name: again[name] for name in ("best_step", "steps")} == {
        name: whole[name] for name in ("best_step", "steps")
    }
    assert again["loss_after"] == whole["loss_after"]


@pytest.mark.slow
def test_a_run_stops_early_when_nothing_gets_better(tmp_path: Path, inputs: dict[str, str]) -> None:
    few = {
        **inputs,
        "train": str(write_jsonl(tmp_path / "few.jsonl", [{"text": "the bank shall report each risk"}] * 4)),
    }
    result = run(tmp_path / "run", few, steps=200, eval_steps=1, patience=3, learning_rate=0.2)
    assert result["steps"] < 200
    assert result["steps"] - result["best_step"] == 3


@pytest.mark.slow
def test_without_a_curve_the_last_step_is_the_versions(tmp_path: Path, inputs: dict[str, str]) -> None:
    result = run(tmp_path, inputs, steps=4)
    assert "best_step" not in result
    assert curve(tmp_path) == {}
