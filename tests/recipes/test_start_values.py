"""Start values of an analysis are what a training begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from tests.tiny_model import make_model
from training.lm.error_reporting import BadInput
from training.recipes.training_loop.start_values import from_file

UP, DOWN = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"


def adapted() -> Any:
    return get_peft_model(
        make_model(),
        LoraConfig(
            task_type="CAUSAL_LM",
            r=4,
            target_modules=["up_proj", "down_proj"],
            rank_pattern={r"^model\.layers\.0\.mlp\.up_proj": 2},
            lora_dropout=0.0,
        ),
    )


def lora_a(model: Any, name: str) -> torch.Tensor:
    return model.get_parameter(f"base_model.model.{name}.lora_A.default.weight").detach()


def test_a_takes_the_first_rows_and_the_model_is_still_the_base_model(tmp_path: Path) -> None:
    values = {UP: torch.randn(8, 16), DOWN: torch.randn(8, 24)}
    save_file(values, tmp_path / "plan.init.safetensors")
    model, ids = adapted(), torch.arange(5, 15)[None]
    random = lora_a(model, "model.layers.1.mlp.up_proj").clone()
    assert from_file(model, tmp_path / "plan.init.safetensors") is model
    assert torch.equal(lora_a(model, UP), values[UP][:2])
    assert torch.equal(lora_a(model, DOWN), values[DOWN][:4])
    assert torch.equal(lora_a(model, "model.layers.1.mlp.up_proj"), random)
    with torch.no_grad(), model.disable_adapter():
        base = model(input_ids=ids).logits
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, base)


@pytest.mark.parametrize(
    ("values", "fragment"),
    [
        ({UP: torch.zeros(1, 16)}, "rank 2 needs"),
        ({UP: torch.zeros(8, 5)}, "rank 2 needs"),
        ({"model.layers.9.mlp.up_proj": torch.zeros(8, 16)}, "any of the adapted modules"),
    ],
)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, values: dict[str, torch.Tensor], fragment: str) -> None:
    save_file(values, tmp_path / "values.safetensors")
    with pytest.raises(BadInput, match=fragment):
        from_file(adapted(), tmp_path / "values.safetensors")


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        from_file(adapted(), tmp_path / "none.safetensors")
