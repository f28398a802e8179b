"""An adapter that would answer wrongly is refused before it is registered, in vLLM's words where vLLM refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serving_client.engine.adapters.adapter import read_adapter
from serving_client.engine.errors import AdapterMissing, AdapterUnusable

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path, make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(tmp_path / "adapter", r=4, lora_alpha=8, target_modules=["q_proj"])


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    weights = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change(weights)
    save_file(weights, path)


def read(folder: Path) -> None:
    shapes = {f"model.layers.{layer}.self_attn.q_proj": (64, 64) for layer in (0, 1)}
    read_adapter("dora", folder, shapes, max_rank=64)


def test_a_plain_adapter_is_read(folder: Path) -> None:
    read(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "does not yet support DoRA"),
        ({"bias": "lora_only"}, "bias must be 'none'"),
        ({"modules_to_save": ["lm_head"]}, "does not yet support modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type must be LORA, not IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model"),
        ({"r": 128}, "LoRA rank 128 is greater than max_lora_rank 64"),
        ({"rank_pattern": {"v_proj": 65}}, "LoRA rank 65 is greater than max_lora_rank 64"),
        ({"r": 0}, "positive integer"),
        ({"r": 8}, "lora_A of 'model.layers.0.self_attn.q_proj' has the shape (4, 64)"),
        ({"rank_pattern": {"q_proj": 2}}, "config ask for (2, 64)"),
        ({"rank_pattern": {"(": 4}}, "not a regular expression"),
        ({"lora_alpha": "many"}, "finite number"),
    ],
)
def test_a_config_that_cannot_be_served_is_refused(folder: Path, fields: dict[str, Any], message: str) -> None:
    edit_config(folder, **fields)
    with pytest.raises(AdapterUnusable) as refused:
        read(folder)
    assert message in str(refused.value)


def nan(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{Q}.lora_B.weight"][3, 1] = float("nan")


def overflow(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{Q}.lora_B.weight"][3, 1] = 3e38


def wrong_shape(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{Q}.lora_A.weight"] = torch.ones(4, 128)


def unknown_module(weights: dict[str, torch.Tensor]) -> None:
    weights["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 64)


def half_a_module(weights: dict[str, torch.Tensor]) -> None:
    del weights[f"{Q}.lora_B.weight"]


def other_tensor(weights: dict[str, torch.Tensor]) -> None:
    weights[f"{Q}.lora_magnitude_vector"] = torch.ones(64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan, "NaN or infinity"),
        (overflow, "NaN or infinity"),
        (wrong_shape, "has the shape (4, 128)"),
        (unknown_module, "no linear module 'model.layers.9.self_attn.q_proj'"),
        (half_a_module, "has no lora_B weight"),
        (other_tensor, "lora_magnitude_vector' is not"),
        (dict.clear, "holds no LoRA matrices"),
    ],
)
def test_weights_that_would_answer_wrongly_are_refused(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    edit_weights(folder, change)
    with pytest.raises(AdapterUnusable) as refused:
        read(folder)
    assert message in str(refused.value)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(AdapterUnusable, match="incomplete metadata"):
        read(folder)


def test_pickled_weights_are_never_opened(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterMissing, match="only safetensors"):
        read(folder)


def test_a_broken_config_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{x")
    with pytest.raises(AdapterUnusable, match="Expecting property name"):
        read(folder)
