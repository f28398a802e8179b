"""A version trained as the demo trains it, on the demo's base model, made smaller: every export answers as in PEFT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapterhub.demo.input_data import prepare_dataset, prepare_model
from adapterhub.demo.walkthrough import HYPERPARAMETERS
from adapterhub.embedded.layout import Layout
from registry.adapter_files.manifest import Manifest
from registry.adapter_files.served_config import CONFIG, write_config
from registry.adapter_files.tensor_names import WEIGHTS
from registry.exports.export_process import export_checked
from registry.exports.gguf import FILE, read_gguf
from registry.models.base_model import linear_shapes
from training.tars.__main__ import main as tars

pytestmark = pytest.mark.slow
# The demo takes 40 steps; what an export has to hold is in the weights after a few.
STEPS = 3
EVERY_LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
# Relative errors of logits: bfloat16 is not used here.
CLOSE = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct, prepared as the demo prepares it."""
    layout = Layout(tmp_path_factory.mktemp("demo"))
    layout.models.mkdir()
    return prepare_model(layout.home)


@pytest.fixture(scope="module")
def version(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that the product's recipe trained on the demo's dataset with the demo's hyperparameters."""
    layout = Layout(tmp_path_factory.mktemp("training"))
    layout.work.mkdir()
    rows = prepare_dataset(layout.home).read_text().splitlines(keepends=True)
    for name, part in (("train", rows[:200]), ("eval", rows[200:210])):
        (layout.home / f"{name}.jsonl").write_text("".join(part))
    hyperparameters = {name: value for name, value in HYPERPARAMETERS.items() if name != "rank"}
    run = {
        "base_model": str(base),
        "base_model_name": base.name,
        **{name: str(layout.home / f"{name}.jsonl") for name in ("train", "eval")},
        "output": str(layout.home / "output"),
        "events": str(layout.home / "events.jsonl"),
        "r": HYPERPARAMETERS["rank"],
        "lora_alpha": 2 * HYPERPARAMETERS["rank"],
        "target_modules": EVERY_LINEAR,
        "hyperparameters": {**hyperparameters, "steps": STEPS, "eval_tokens": 200},
    }
    (layout.home / "run.json").write_text(json.dumps(run))
    command = [sys.executable, "-m", "training.recipes.lora", str(layout.home / "run.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return layout.home / "output" / "adapter"


@pytest.fixture(scope="module", params=["uniform:4", "uniform:1"])
def compressed(
    request: pytest.FixtureRequest, version: Path, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The version cut to a budget, with the configuration that replicas read."""
    folder = tmp_path_factory.mktemp("compressed") / "small"
    assert tars(["compress", "--adapter", str(version), "--budget", str(request.param), "--out", str(folder)]) == 0
    config = json.loads((base / "config.json").read_bytes())
    manifest = Manifest.read(folder, linear_shapes(config), config["num_hidden_layers"])
    is_partial = len(manifest.ranks) < 7 * config["num_hidden_layers"]
    assert is_partial == (request.param == "uniform:1"), "layers that lack a kind are in the test"
    write_config(folder, manifest.config)
    return folder


def logits(checkpoint: Path, adapter: Path | None = None) -> torch.Tensor:
    """The logits of a sentence of the law, with an adapter as PEFT computes it."""
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter))
    ids = AutoTokenizer.from_pretrained(checkpoint)(
        "DORA, Article 19 (1): Financial entities shall", return_tensors="pt"
    )
    with torch.inference_mode():
        return torch.as_tensor(model.eval()(input_ids=ids["input_ids"]).logits)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The relative error of logits."""
    return float((one - other).norm() / other.norm())


def test_it_leaves_as_portable_gguf_and_merged(compressed: Path, base: Path, tmp_path: Path) -> None:
    expected, untouched = logits(base, compressed), logits(base)
    assert distance(expected, untouched) > 1000 * CLOSE, "an adapter that does nothing proves nothing"
    for form in ("portable", "gguf", "merged"):
        (tmp_path / form).mkdir()
        export_checked(compressed, base, tmp_path / form / "out", form, "fp32")
    assert distance(logits(base, tmp_path / "portable/out"), expected) < CLOSE
    assert distance(logits(tmp_path / "merged/out"), expected) < CLOSE
    # What an engine reads out of the GGUF file, as PEFT's file again.
    again, portable = tmp_path / "read-again", tmp_path / "portable/out"
    names = list(load_file(portable / WEIGHTS))
    again.mkdir()
    save_file(read_gguf(tmp_path / "gguf/out" / FILE, base, names), again / WEIGHTS)
    shutil.copy(portable / CONFIG, again)
    assert distance(logits(base, again), expected) < CLOSE
