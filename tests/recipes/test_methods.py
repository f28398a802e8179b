"""All six methods on a tiny model: the loss falls, and what is written is a plain LoRA that engines serve."""

from __future__ import annotations

import importlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from registry.adapter_files.manifest import Manifest
from serving_client.engine.adapters.adapter import read_adapter
from serving_client.engine.batching.batch import RunningBatch
from tests.recipes.runs import events_of, losses, write_inputs, write_run
from training.recipes import lora

RATES = {"lora": 0.05, "qlora": 0.05, "dora": 0.05, "adalora": 0.05, "full": 0.02, "galore": 0.05}
CONVERTED = ("dora", "full", "galore")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", params=RATES)
def finished(request: pytest.FixtureRequest, inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    train(request.param, folder, inputs)
    return folder


def train(method: str, folder: Path, inputs: dict[str, str], **changes: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    chosen = {"learning_rate": RATES[method], "galore_rank": 8, **changes}
    path = write_run(folder, inputs, steps=30, rank_pattern={}, alpha_pattern={}, hyperparameters=chosen)
    assert importlib.import_module(f"training.recipes.{method}").main([str(path)]) == 0
    signal.signal(signal.SIGTERM, before)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "output/result.json").read_bytes())


def test_the_loss_falls(finished: Path) -> None:
    result = result_of(finished)
    assert result["loss_after"] < result["loss_before"] - 0.3


def test_what_is_published_is_a_lora_that_the_registry_takes(finished: Path, inputs: dict[str, str]) -> None:
    config = json.loads((Path(inputs["base_model"]) / "config.json").read_bytes())
    wide, width = config["intermediate_size"], config["hidden_size"]
    shapes = {
        "q_proj": (width, width),
        "k_proj": (8, width),
        "v_proj": (8, width),
        "o_proj": (width, width),
        "gate_proj": (wide, width),
        "up_proj": (wide, width),
        "down_proj": (width, wide),
    }
    manifest = Manifest.read(finished / "output/adapter", shapes, config["num_hidden_layers"])
    assert manifest.scale == pytest.approx(2)
    assert manifest.parameters == result_of(finished)["parameters"]


def test_the_loss_as_served_is_told(finished: Path) -> None:
    result = result_of(finished)
    served = result.get("loss_served", result["loss_after"])
    assert served < result["loss_before"]
    if result["method"] in ("lora", "adalora"):
        assert served == pytest.approx(result["loss_after"], abs=1e-4)
    if result["method"] in CONVERTED:
        assert 0 <= result["reconstruction_error"] < 1


@torch.inference_mode()
def test_peft_and_the_embedded_engine_give_equal_logits(finished: Path, inputs: dict[str, str]) -> None:
    adapter, prompt = finished / "output/adapter", torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    base = AutoModelForCausalLM.from_pretrained(inputs["base_model"]).eval().requires_grad_(False)
    without = base(input_ids=prompt).logits
    batch = RunningBatch(base, max_loras=1, ends=frozenset())
    loaded = read_adapter("one", adapter, batch.module_shapes, max_rank=64)
    batch.residents.admit(loaded, set())
    batch.residents.route([loaded])
    served = base(input_ids=prompt).logits
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(inputs["base_model"]), str(adapter)).eval()
    assert torch.allclose(served, peft(input_ids=prompt).logits, atol=1e-4)
    assert not torch.allclose(served, without, atol=0.01)


@pytest.mark.parametrize("method", ["adalora", "galore", "qlora"])
@pytest.mark.slow
def test_a_resumed_training_gives_the_same_losses(method: str, inputs: dict[str, str], tmp_path: Path) -> None:
    """What a worker's death leaves: complete checkpoints and a torn one."""
    train(method, tmp_path, inputs)
    whole = losses(tmp_path)
    weights = load_file(tmp_path / "output/adapter/adapter_model.safetensors")
    (tmp_path / "output/checkpoints/checkpoint-30/complete").unlink()
    (tmp_path / "events.jsonl").unlink()
    train(method, tmp_path, inputs)
    assert losses(tmp_path) == {step: loss for step, loss in whole.items() if step > 25}
    again = load_file(tmp_path / "output/adapter/adapter_model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_adalora_really_prunes(inputs: dict[str, str], tmp_path: Path) -> None:
    train("adalora", tmp_path, inputs)
    weights = load_file(tmp_path / "output/adapter/adapter_model.safetensors")
    ranks = [len(weight) for name, weight in weights.items() if ".lora_A." in name]
    assert len(set(ranks)) > 1
    assert max(ranks) <= 12
    assert sum(ranks) <= 9 * len(ranks)


@pytest.mark.parametrize("packing", [0, 1])
def test_packing_trains_on_more_tokens_a_step(packing: int, inputs: dict[str, str], tmp_path: Path) -> None:
    train("lora", tmp_path, inputs, packing=packing)
    result = result_of(tmp_path)
    assert result["loss_after"] < result["loss_before"] - 0.3
    assert (result["train_tokens"] > 30 * 4 * 26) == bool(packing)


@pytest.mark.parametrize("init", ["eva", "file"])
def test_start_values(init: str, inputs: dict[str, str], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    start = tmp_path / "plan.init.safetensors"
    save_file({name: torch.eye(16)[:8].contiguous()}, start)
    path = write_run(tmp_path, inputs, steps=3, init=str(start) if init == "file" else "eva")
    assert lora.main([str(path)]) == 0
    assert events_of(tmp_path, "metrics")[0]["loss"] > 0
    config = json.loads((tmp_path / "output/adapter/adapter_config.json").read_bytes())
    assert config["lora_alpha"] / config["r"] == 2
