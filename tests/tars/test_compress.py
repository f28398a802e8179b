"""A trained adapter made smaller: the cut is the best of its size, and nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from tests.tiny_model import make_model, save_base_model, sentences, write_jsonl
from training.tars.__main__ import main
from training.tars.compress import Update, read_adapter

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


def adapter(folder: Path, **config: Any) -> Any:
    """A LoRA adapter with random weights on both sides, saved."""
    torch.manual_seed(0)
    chosen = {"r": 6, "lora_alpha": 12, "target_modules": ["q_proj", "up_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(make_model(), LoraConfig(**chosen | config))
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.3)
    model.save_pretrained(str(folder))
    return model.eval()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return PeftModel.from_pretrained(make_model(), str(folder)).eval()(IDS).logits


def compressed(source: Path, out: Path, budget: str, *more: str) -> dict[str, Any]:
    assert main(["compress", "--adapter", str(source), "--budget", budget, "--out", str(out), *more]) == 0
    report: dict[str, Any] = json.loads(out.with_name(out.name + ".json").read_bytes())
    return report


def test_an_update_is_that_of_a_dense_decomposition() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 30).double(), torch.randn(20, 5).double()
    update = Update.of(a, b, 2.0)
    left_vectors, values, right = torch.linalg.svd(2 * b @ a, full_matrices=False)
    torch.testing.assert_close(update.values, values[:5])
    small_a, small_b = update.factors(3, scale=2.0)
    expected = (left_vectors[:, :3] * values[:3]) @ right[:3]
    torch.testing.assert_close(2.0 * small_b @ small_a, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [{}, {"use_rslora": True}, {"rank_pattern": {"up_proj": 3}, "alpha_pattern": {"up_proj": 12, "q_proj": 3}}],
)
def test_a_budget_for_everything_changes_no_logits(tmp_path: Path, config: dict[str, Any]) -> None:
    model = adapter(tmp_path / "a", **config)
    with torch.no_grad():
        before = model(IDS).logits
    report = compressed(tmp_path / "a", tmp_path / "b", f"params:{everything(tmp_path / 'a')}")
    torch.testing.assert_close(logits(tmp_path / "b"), before, rtol=1e-4, atol=1e-4)
    assert report["energy_kept"] == pytest.approx(1.0)


def everything(folder: Path) -> int:
    updates, _ = read_adapter(folder)
    return max(len(update.values) for update in updates.values()) * sum(sum(u.shape) for u in updates.values())


def test_a_smaller_adapter_keeps_the_interface_and_one_scale(tmp_path: Path) -> None:
    adapter(tmp_path / "a", rank_pattern={"up_proj": 3}, alpha_pattern={"up_proj": 12})
    report = compressed(tmp_path / "a", tmp_path / "b", "uniform:2")
    assert report["parameters"] < report["parameters_before"]
    assert 0.3 < report["energy_kept"] < 1.0
    model = PeftModel.from_pretrained(make_model(), str(tmp_path / "b"))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and module.lora_A]
    assert len({module.lora_A["default"].weight.shape[0] for module in layers}) > 1
    assert {module.scaling["default"] for module in layers} == {2.0}


def test_the_loss_before_and_after_is_told(tmp_path: Path) -> None:
    base, data = save_base_model(tmp_path / "base"), write_jsonl(tmp_path / "data.jsonl", sentences(12))
    adapter(tmp_path / "a")
    report = compressed(tmp_path / "a", tmp_path / "b", "uniform:2", "--model", str(base), "--data", str(data))
    assert report["loss_before"] > 0
    assert report["loss_after"] > 0
    assert report["tokens"] > 50


@pytest.mark.parametrize(
    ("make", "more", "fragment"),
    [
        ({"use_dora": True}, [], "only a plain LoRA adapter"),
        (None, [], "is not a PEFT adapter"),
        ({}, ["--model", "somewhere"], "the loss needs both --model and --data"),
        ({}, ["--budget", "params:1"], "too small"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: dict[str, Any] | None, more: list[str], fragment: str
) -> None:
    if make is not None:
        adapter(tmp_path / "a", **make)
    command = [
        "compress",
        "--adapter",
        str(tmp_path / "a"),
        "--budget",
        "uniform:2",
        "--out",
        str(tmp_path / "b"),
        *more,
    ]
    assert main(command) == 2
    assert fragment in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
