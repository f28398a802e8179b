"""A training that made its model worse ends as failed, with the reason."""

from __future__ import annotations

import math

import pytest

from tests.recipes.runs import events_of, write_inputs, write_run
from tests.tiny_model import write_jsonl
from training.lm.error_reporting import Diverged
from training.lm.evaluation import HeldOutLoss
from training.recipes import lora
from training.recipes.training_loop.divergence import require_finite, require_sound


def loss(*examples: float) -> HeldOutLoss:
    return HeldOutLoss(sum(examples) / len(examples), 10 * len(examples), len(examples), list(examples))


def judged(before: HeldOutLoss | None, after: HeldOutLoss | None, vocabulary: int = 1000) -> None:
    require_sound(before, after, [1.0] * (after.rows if after else 0), math.log(vocabulary))


@pytest.mark.parametrize(
    ("before", "after", "fragment"),
    [
        (loss(2.0, 2.0), loss(math.nan, 2.0), "is nan"),
        (loss(2.0, 2.0), loss(8.0, 9.0), "no better than a guess among 1,000 tokens"),
        (loss(*[2.0] * 9), loss(*[2.5] * 9), r"rose from 2.000 to 2.500 \(0.500 to 0.500 more, 95 %\)"),
    ],
)
def test_a_worse_model_is_refused_with_the_numbers(before: HeldOutLoss, after: HeldOutLoss, fragment: str) -> None:
    with pytest.raises(Diverged, match=fragment):
        judged(before, after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, None),
        (loss(*[2.0] * 9), loss(*[1.5] * 9)),
        (loss(9.0, 9.0), loss(8.0, 8.0)),
        (loss(*[2.0] * 8), loss(*[1.0, 3.1] * 4)),
    ],
)
def test_a_better_model_and_chance_are_not(before: HeldOutLoss | None, after: HeldOutLoss | None) -> None:
    judged(before, after)


@pytest.mark.parametrize("values", [{"loss": math.nan}, {"loss": 1.0, "grad_norm": math.inf}])
def test_a_step_without_numbers_ends_the_training(values: dict[str, float]) -> None:
    with pytest.raises(Diverged, match="at step 7"):
        require_finite(7, values)


@pytest.mark.slow
def test_a_run_that_unlearns_its_language_fails_as_diverged(tmp_path) -> None:
    inputs = write_inputs(tmp_path)
    inputs["train"] = str(write_jsonl(tmp_path / "one_word.jsonl", [{"text": "a " * 12}] * 20))
    assert lora.main([str(write_run(tmp_path / "run", inputs, steps=60))]) == 1
    (error,) = events_of(tmp_path / "run", "error")
    assert error["code"] == "diverged"
    assert "learning_rate" in error["message"]
    assert not (tmp_path / "run" / "output" / "adapter").exists()
