"""A few steps, measured: time and memory everywhere, energy where a driver tells the power."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.recipes.runs import write_inputs, write_run
from training.lm.error_reporting import BadInput
from training.recipes import dry_run


@pytest.mark.slow
def test_three_steps_say_what_all_will_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path / "run", write_inputs(tmp_path), steps=30)
    assert dry_run.main([str(path), "lora"]) == 0
    forecast = json.loads(capsys.readouterr().out)
    assert forecast["steps"] == 3
    assert forecast["seconds"] == pytest.approx(30 * forecast["seconds_a_step"], abs=0.1)
    assert forecast["memory_bytes"] > 10**8
    assert not (tmp_path / "run" / "output").exists()


def test_what_the_recipe_refuses_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run.main([str(tmp_path / "none.json"), "lora"]) == 2
    assert "none.json cannot be read" in capsys.readouterr().err
    watch = dry_run.Watch(Path("none"), events_seen=[(0.0, {"kind": "error", "message": "train: it has no rows."})])
    with pytest.raises(BadInput, match="it has no rows"):
        watch.answer(100)


def test_power_is_summed_over_the_devices() -> None:
    assert dry_run.summed("101.5\n98.5\n") == 200.0
    assert dry_run.summed("[N/A]\n") is None
    watch = dry_run.Watch(Path("none"), watts=[200.0, 400.0])
    watch.events_seen = [(float(at), {"kind": "metrics", "step": at, "memory_bytes": 1}) for at in (1, 2, 3)]
    assert watch.answer(100)["joules"] == 30_000.0
