"""Epochs instead of steps, the held-out loss on the way, the best weights, and the early stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.runs import events_of, write_inputs, write_run
from tests.tiny_model import write_jsonl
from training.recipes import lora


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def run(folder: Path, inputs: dict[str, str], **chosen: Any) -> dict[str, Any]:
    path = write_run(folder, inputs, steps=chosen.pop("steps", 30), hyperparameters=chosen)
    assert lora.main([str(path)]) == 0
    return dict(json.loads((folder / "output" / "result.json").read_bytes()))


def curve(folder: Path) -> dict[int, float]:
    return {event["step"]: event["held_out_loss"] for event in events_of(folder, "metrics") if "held_out_loss" in event}


@pytest.mark.parametrize("packing", [0, 1])
def test_epochs_are_counted_in_rows(tmp_path: Path, inputs: dict[str, str], packing: int) -> None:
    result = run(tmp_path, inputs, epochs=2, batch_size=8, packing=packing)
    # 60 rows twice in batches of 8.
    assert result["steps"] == 15 if not packing else result["steps"] < 15


def test_the_version_is_of_the_best_step_and_not_of_the_last(tmp_path: Path, inputs: dict[str, str]) -> None:
    few = {
        **inputs,
        "train": str(write_jsonl(tmp_path / "few.jsonl", [{"text": "the bank shall report each risk"}] * 4)),
    }
    result = run(tmp_path / "run", few, steps=30, eval_steps=2, learning_rate=0.2)
    losses = curve(tmp_path / "run")
    assert list(losses) == list(range(2, 31, 2))
    best = min(losses, key=lambda step: losses[step])
    assert result["best_step"] == best < 30
    assert result["loss_after"] == pytest.approx(losses[best], rel=1e-3)


def test_a_run_stops_early_when_nothing_gets_better(tmp_path: Path, inputs: dict[str, str]) -> None:
    few = {
        **inputs,
        "train": str(write_jsonl(tmp_path / "few.jsonl", [{"text": "the bank shall report each risk"}] * 4)),
    }
    result = run(tmp_path / "run", few, steps=200, eval_steps=1, patience=3, learning_rate=0.2)
    assert result["steps"] < 200
    assert result["steps"] - result["best_step"] == 3


def test_without_a_curve_the_last_step_is_the_versions(tmp_path: Path, inputs: dict[str, str]) -> None:
    result = run(tmp_path, inputs, steps=4)
    assert "best_step" not in result
    assert curve(tmp_path) == {}
