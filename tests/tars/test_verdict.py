"""The verdict claims what was measured, and no more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from training.tars import verdict
from training.tars.presets import PRESETS, Settings

ALL_ALIKE, ONE_HIGH = [8, 8, 8, 8], [4, 4, 4, 20]


def modules(mlp: list[int], attention: int = 0, divergence: float | None = None) -> list[dict[str, Any]]:
    ranks = [("mlp.up_proj", rank) for rank in mlp] + [("self_attn.q_proj", attention)] * len(mlp)
    return [
        {"name": f"layers.{place}.{name}", "shape": [16, 16], "divergence": divergence, "rank": rank}
        for place, (name, rank) in enumerate(ranks)
    ]


@pytest.mark.parametrize(
    ("settings", "modules", "fragment"),
    [
        (PRESETS["default"], modules(ONE_HIGH), "as well as the same rank in every MLP module with the same start"),
        (PRESETS["seed"], modules(ONE_HIGH, 4, 0.1), "did worse than the same rank in every MLP module"),
        (PRESETS["seed"], modules(ONE_HIGH, 4), "only a run of each can tell"),
        (replace(PRESETS["default"], sensitivity="spectrum"), modules(ONE_HIGH), "only a run of each can tell"),
    ],
)
def test_a_plan_is_told_with_what_its_preset_was_measured_to_do(
    settings: Settings, modules: list[dict[str, Any]], fragment: str
) -> None:
    word, text = verdict.of(modules, 0.9, 16, settings)
    assert word == "follow_plan"
    assert "stability 0.90" in text
    assert fragment in text


def test_leaving_attention_out_as_a_kind_is_no_finding() -> None:
    word, text = verdict.of(modules(ALL_ALIKE), 0.9, 16, PRESETS["default"])
    assert (word, "in every MLP module" in text) == ("uniform_as_good", True)
    settings = replace(PRESETS["default"], kinds="all")
    assert verdict.of(modules(ALL_ALIKE), 0.9, 16, settings)[0] == "follow_plan"
    assert "everywhere" in verdict.of(modules(ALL_ALIKE, 8), 0.9, 16, settings)[1]


@pytest.mark.parametrize(("stability", "sequences"), [(0.5, 16), (0.9, 7)])
def test_what_the_halves_do_not_share_is_no_plan(stability: float, sequences: int) -> None:
    word, text = verdict.of(modules(ONE_HIGH), stability, sequences, PRESETS["default"])
    assert word == "sample_too_small"
    assert f"{sequences} sequences" in text
