"""Several processes train one run: the same recipe file, one reporter, one result; they stop at the same step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.recipes.runs import events_of, losses, write_inputs, write_run
from tests.tiny_model import write_jsonl
from tests.tools import requires
from tests.waiting import wait_until
from training.lm.base_model import load_model, load_tokenizer
from training.lm.evaluation import held_out_loss, held_out_sample
from training.lm.token_sequences import read_rows, tokenised
from training.recipes import launch_command, lora
from training.recipes.training_loop.checkpoints import last_complete

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []
    yield children
    for child in children:
        child.kill()
        child.wait()


def start(path: Path, devices: int) -> subprocess.Popen[bytes]:
    command = launch_command.command("training.recipes.lora", str(path), devices)
    return subprocess.Popen([sys.executable, "-m", *command], env=ENVIRONMENT)


def test_two_processes_learn_what_one_learns(
    inputs: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """The same rows in the same steps: two processes of two rows each, or one of four."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert lora.main([str(write_run(alone, inputs, steps=8))]) == 0
    path = write_run(together, inputs, steps=8, devices=2, hyperparameters={"batch_size": 2})
    started.append(start(path, 2))
    assert started[0].wait(120) == 0
    assert losses(together) == pytest.approx(losses(alone), rel=1e-3)
    assert [event["step"] for event in events_of(together, "metrics")] == list(range(1, 9))
    first, second = (json.loads((folder / "output/result.json").read_bytes()) for folder in (alone, together))
    assert second["loss_after"] == pytest.approx(first["loss_after"], rel=1e-3)
    assert second["train_tokens"] == first["train_tokens"]


def test_one_process_goes_on_where_two_stopped(
    inputs: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    assert lora.main([str(write_run(alone, inputs, steps=10))]) == 0
    path = write_run(moved, inputs, steps=10, devices=2, hyperparameters={"batch_size": 2})
    started.append(start(path, 2))
    assert started[0].wait(120) == 0
    (moved / "output/checkpoints/checkpoint-10/complete").unlink()
    (moved / "events.jsonl").unlink()
    assert lora.main([str(write_run(moved, inputs, steps=10))]) == 0
    assert sorted(losses(moved)) == list(range(6, 11))
    assert losses(moved) == pytest.approx({step: losses(alone)[step] for step in range(6, 11)}, rel=1e-3)


def test_shards_learn_what_replicas_learn(
    inputs: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    assert lora.main([str(write_run(alone, inputs, steps=6))]) == 0
    path = write_run(sharded, inputs, steps=6, devices=2, sharding="fsdp", hyperparameters={"batch_size": 2})
    started.append(start(path, 2))
    assert started[0].wait(120) == 0
    assert losses(sharded) == pytest.approx(losses(alone), rel=1e-3)
    (before,) = (event for event in events_of(sharded, "evaluation") if event["when"] == "before")
    (expected,) = (event for event in events_of(alone, "evaluation") if event["when"] == "before")
    assert before["loss"] == pytest.approx(expected["loss"], rel=1e-5), (
        "the base's, though measured with an adapter on it"
    )
    name = "output/adapter/adapter_model.safetensors"
    of_shards, of_one = load_file(sharded / name), load_file(alone / name)
    assert of_shards.keys() == of_one.keys()
    assert all(torch.allclose(of_shards[key], of_one[key], atol=0.01) for key in of_shards)


def test_the_version_of_a_run_in_shards_is_of_its_best_step(
    inputs: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    few = str(write_jsonl(tmp_path / "few.jsonl", [{"text": "the bank shall report each risk"}] * 4))
    chosen = {"batch_size": 2, "eval_steps": 2, "patience": 3, "learning_rate": 0.2}
    path = write_run(tmp_path, {**inputs, "train": few}, steps=30, devices=2, sharding="fsdp", hyperparameters=chosen)
    started.append(start(path, 2))
    assert started[0].wait(120) == 0
    result = json.loads((tmp_path / "output/result.json").read_bytes())
    curve = {event["step"]: event.get("held_out_loss") for event in events_of(tmp_path, "metrics")}
    measured = {step: loss for step, loss in curve.items() if loss is not None}
    assert min(measured, key=lambda step: measured[step]) == result["best_step"] == result["steps"] - 6
    assert result["loss_after"] == pytest.approx(measured[result["best_step"]], rel=1e-5)
    alone = load_model(Path(inputs["base_model"]))
    adapted = PeftModel.from_pretrained(alone, str(tmp_path / "output/adapter"))
    rows = tokenised(read_rows(Path(inputs["eval"])), load_tokenizer(Path(inputs["base_model"])), 32)
    held_out = held_out_sample(rows, 60, 0)
    assert held_out_loss(adapted, held_out, 1).loss == pytest.approx(result["loss_after"], rel=1e-3)


def test_a_stop_reaches_every_process_and_nothing_is_left(
    inputs: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    path = write_run(
        tmp_path, inputs, steps=5000, devices=2, hyperparameters={"batch_size": 2, "checkpoint_steps": 900}
    )
    started.append(start(path, 2))
    wait_until(lambda: len(losses(tmp_path)) >= 3, timeout_s=120, what="three steps")
    ranks = psutil.Process(started[0].pid).children(recursive=True)
    assert len(ranks) >= 2
    started[0].terminate()
    started[0].wait(60)
    assert last_complete(tmp_path / "output/checkpoints").name == f"checkpoint-{max(losses(tmp_path))}"
    wait_until(lambda: not any(alive(rank) for rank in ranks), timeout_s=60, what="every process ends")


@requires("soak")
def test_the_launchers_death_ends_every_process(
    inputs: dict[str, str], tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    started.append(start(write_run(tmp_path, inputs, steps=5000, devices=2), 2))
    wait_until(lambda: losses(tmp_path), timeout_s=120, what="a step")
    ranks = psutil.Process(started[0].pid).children(recursive=True)
    started[0].kill()
    wait_until(lambda: not any(alive(rank) for rank in ranks), timeout_s=60, what="every process ends")


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_run_for_two_refuses_one_process(inputs: dict[str, str], tmp_path: Path) -> None:
    assert lora.main([str(write_run(tmp_path, inputs, devices=2))]) == 2
    (error,) = events_of(tmp_path, "error")
    assert error["message"] == "devices: the run wants 2 processes, but 1 were launched."
