"""The LoRA recipe: it learns, honours the plan, stops and goes on without a trace, and names what is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.recipes.runs import PLAN, events_of, losses, write_inputs, write_run
from tests.waiting import wait_until
from training.recipes import evaluate, lora
from training.recipes.training_loop.checkpoints import last_complete


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, str]) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    before = signal.getsignal(signal.SIGTERM)
    assert lora.main([str(write_run(folder, inputs))]) == 0
    signal.signal(signal.SIGTERM, before)
    return folder


def test_the_loss_falls_and_the_result_says_so(finished: Path) -> None:
    result = json.loads((finished / "output" / "result.json").read_bytes())
    before, after = events_of(finished, "evaluation")
    assert (before["when"], after["when"]) == ("before", "after")
    assert result["loss_after"] == after["loss"] < before["loss"] - 0.3 == result["loss_before"] - 0.3
    assert (result["method"], result["steps"]) == ("lora", 30)
    assert 0 < result["eval_tokens"] <= 60
    assert result["train_tokens"] > 30 * 4 * 5
    assert result["parameters"] == stored_parameters(finished / "output" / "adapter")


def stored_parameters(adapter: Path) -> int:
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - no iterator


def test_every_step_is_reported(finished: Path) -> None:
    assert [event["step"] for event in events_of(finished, "progress")] == list(range(1, 31))
    metrics = events_of(finished, "metrics")
    assert [event["step"] for event in metrics] == list(range(1, 31))
    numbers = {"loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_bytes"}
    assert set(metrics[0]) == {"kind", "step"} | numbers


def test_the_adapter_is_two_files_with_the_planned_ranks(finished: Path) -> None:
    adapter = finished / "output" / "adapter"
    assert {path.name for path in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    assert config | PLAN | {"base_model_name_or_path": "tiny"} == config
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        ranks = {
            name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): weights.get_tensor(name).shape[0]
            for name in weights.keys()  # noqa: SIM118 - no iterator
            if ".lora_A." in name
        }
    assert ranks.pop("model.layers.0.mlp.up_proj") == 3
    assert ranks.pop("model.layers.1.self_attn.q_proj") == 5
    assert set(ranks.values()) == {8}
    assert len(ranks) == 12


def test_the_same_run_gives_the_same_bytes(finished: Path, inputs: dict[str, str], tmp_path: Path) -> None:
    assert lora.main([str(write_run(tmp_path, inputs))]) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "output/adapter" / name).read_bytes() == (finished / "output/adapter" / name).read_bytes()


def test_an_evaluation_of_its_own_finds_the_same_loss(finished: Path, inputs: dict[str, str], tmp_path: Path) -> None:
    record = {
        "base_model": inputs["base_model"],
        "adapter": str(finished / "output" / "adapter"),
        "data": inputs["eval"],
        "output": str(tmp_path),
        "events": str(tmp_path / "events.jsonl"),
        "max_tokens": 60,
        "max_length": 32,
    }
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(record))
    assert evaluate.main([str(path)]) == 0
    result = json.loads((finished / "output" / "result.json").read_bytes())
    evaluated = json.loads((tmp_path / "result.json").read_bytes())
    assert evaluated == {
        "loss": pytest.approx(result["loss_after"], rel=1e-5),
        "tokens": result["eval_tokens"],
        "rows": result["eval_rows"],
    }


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(inputs: dict[str, str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert lora.main([str(write_run(whole, inputs, steps=150))]) == 0
    path = write_run(parts, inputs, steps=150)
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "training.recipes.lora", str(path)])
    wait_until(lambda: len(losses(parts)) >= 7, timeout_s=120, what="seven steps")
    child.terminate()
    assert child.wait(60) == 143
    stopped_at = max(losses(parts))
    assert 7 <= stopped_at < 150
    assert last_complete(parts / "output" / "checkpoints").name == f"checkpoint-{stopped_at}"
    assert not (parts / "output" / "result.json").exists()
    assert lora.main([str(path)]) == 0
    assert losses(parts) == losses(whole)
    assert len(events_of(parts, "metrics")) == 150
    assert len([event for event in events_of(parts, "evaluation") if event["when"] == "before"]) == 1
    name = "output/adapter/adapter_model.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    assert last_complete(tmp_path) is None
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / "complete").touch()
    assert last_complete(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"base_model": "/nowhere"}, "base_model: /nowhere"),
        ({"train": "/nowhere.jsonl"}, "train: /nowhere.jsonl does not exist"),
        ({"r": 0}, "r: 0 is too small"),
        ({"target_modules": []}, "target_modules: give a list"),
        ({"target_modules": ["no_proj"]}, "target_modules: the base model has no linear module no_proj"),
        ({"rank_pattern": {"^nothing": 4}}, "rank_pattern: '^nothing' is not"),
        ({"alpha_pattern": {}}, "alpha_pattern: alpha / r of ^model"),
        ({"hyperparameters": {"steps": 0}}, "hyperparameters.steps: 0 is too small"),
        ({"hyperparameters": {"learning_rate": "fast"}}, "hyperparameters.learning_rate: must be a number"),
        ({"hyperparameters": {"rounds": 3}}, "hyperparameters.rounds is unknown; known are steps, batch_size"),
        ({"hyperparameters": {"steps": "3"}}, "hyperparameters.steps: must be a whole number, not '3'."),
        ({"lora_alpha": 0}, "lora_alpha: 0 is too small: it must be above 0."),
        ({"rank_pattern": {"^up": "x"}}, "rank_pattern.^up: must be a whole number, not 'x'."),
        ({"sharding": "zero"}, "sharding: choose 'ddp' or 'fsdp', not 'zero'."),
        ({"train": None}, "train: is missing: add it."),
        ({"colour": "blue"}, "colour is unknown; known are base_model, output"),
    ],
)
def test_bad_input_is_named(inputs: dict[str, str], tmp_path: Path, changes: dict[str, Any], fragment: str) -> None:
    assert lora.main([str(write_run(tmp_path, inputs, **changes))]) == 2
    (error,) = events_of(tmp_path, "error")
    assert error["code"] == "bad_input"
    assert fragment in error["message"]


def test_a_broken_line_is_named(inputs: dict[str, str], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a bank"}\n{"text": 3}\n')
    assert lora.main([str(write_run(tmp_path, inputs, train=str(rows)))]) == 2
    (error,) = events_of(tmp_path, "error")
    assert error["message"] == "train: rows.jsonl, line 2: text is missing, empty or not a string."


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (MemoryError(), "gpu_oom"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "gpu_oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "gpu_oom"),
        (OSError(28, "No space left on device"), "no_space"),
        (KeyError("odd"), "internal"),
    ],
)
def test_faults_have_a_code(
    inputs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, code: str
) -> None:
    def break_down(*_: object) -> None:
        raise fault

    monkeypatch.setattr(lora, "train", break_down)
    assert lora.main([str(write_run(tmp_path, inputs))]) == 1
    (error,) = events_of(tmp_path, "error")
    assert error["code"] == code
    assert error["message"]


def test_a_run_file_that_is_none_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text("[]")
    assert lora.main([str(tmp_path / "run.json")]) == 2
    assert "is not a JSON object" in capsys.readouterr().err
    assert lora.main([str(tmp_path / "none.json")]) == 2


def test_a_run_with_start_values_begins_with_them(finished: Path, inputs: dict[str, str], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    name = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    values = torch.linspace(-1, 1, 8 * 16).reshape(8, 16)
    save_file({"model.layers.0.mlp.up_proj": values}, tmp_path / "values.safetensors")
    # B is zero at first, so that one step at a tiny rate leaves A as it began.
    changes = {"init": str(tmp_path / "values.safetensors"), "hyperparameters": {"learning_rate": 1e-9}}
    assert lora.main([str(write_run(tmp_path, inputs, steps=1, **changes))]) == 0
    trained = load_file(tmp_path / "output" / "adapter" / "adapter_model.safetensors")
    assert torch.allclose(trained[name], values[:3], atol=1e-6)


@pytest.mark.slow
def test_prompts_are_answered_by_the_base_and_each_checkpoint_and_change_nothing(
    tmp_path: Path, inputs: dict[str, str], finished: Path
) -> None:
    prompts = {"greeting": "the quick", "end": "a lazy dog"}
    assert lora.main([str(write_run(tmp_path, inputs, prompts=prompts))]) == 0
    answers_at = {event["step"]: event["answers"] for event in events_of(tmp_path, "answers")}
    assert list(answers_at) == [0, 5, 10, 15, 20, 25, 30]
    assert all(set(answers) == set(prompts) for answers in answers_at.values())
    assert answers_at[0] != answers_at[30]
    assert losses(tmp_path) == losses(finished)
    last = continued(inputs, tmp_path / "output" / "adapter", prompts["greeting"])
    assert answers_at[30]["greeting"] == last


def continued(inputs: dict[str, str], adapter: Path, prompt: str) -> str:
    from peft import PeftModel

    from training.lm.base_model import load_model, load_tokenizer
    from training.recipes.compare import answer_of
    from training.recipes.training_loop.checkpoint_answers import NEW_TOKENS

    base = Path(inputs["base_model"])
    model = PeftModel.from_pretrained(load_model(base), str(adapter))
    return answer_of(lambda generate: generate(model), load_tokenizer(base), {"prompt": prompt}, NEW_TOKENS)
