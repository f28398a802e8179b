"""The pictures' made-up world keeps the product's own rules: what its pages show could have been."""

from __future__ import annotations

import random

from tests.pages.realistic_rows import config_of, parameters_of, plan, planned_ranks, uniform_ranks
from training.tars.allocation import reallocate
from training.tars.presets import is_attention


def test_a_plan_has_the_ranks_that_its_settings_and_signals_give() -> None:
    made_up = plan(random.Random(1))
    again = reallocate(made_up, "uniform_rank", 16)
    assert [module["rank"] for module in made_up["modules"]] == [module["rank"] for module in again["modules"]]
    assert made_up["settings"]["kinds"] == "mlp"
    assert {module["rank"] for module in made_up["modules"] if is_attention(module["name"])} == {0}
    assert made_up["parameters"] <= made_up["budget"]["parameters"]


def test_planned_versions_have_no_attention_and_others_one_rank() -> None:
    planned = planned_ranks(random.Random(1))
    assert not [name for name in planned if is_attention(name)]
    assert set(uniform_ranks().values()) == {16}
    assert parameters_of(uniform_ranks()) == 4_884_480
    assert max(config_of(planned)["rank_pattern"].values()) <= 32
