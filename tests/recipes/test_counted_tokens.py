"""The loss of a method's first step is the mean over exactly the tokens that the run's choice counts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.recipes.runs import events_of, write_inputs, write_run
from tests.tiny_model import write_jsonl
from training.lm.base_model import load_model, load_tokenizer
from training.recipes.qlora import load_in_4_bits
from training.recipes.run_file import Run, read_record
from training.recipes.training_loop.trainer import SCHEDULERS

TALKS = [
    [("a bank", "shall report", 1), ("the risk", "within four hours", 0), ("its records", "keep every", 1)],
    [("each incident", "may harm clients", 1)],
    [("the competent authority", "to the bank", 0.5), ("a law", "exempt unless", 1)],
    [("under article", "of the law and", 1), ("or markets", "that risk", 0)],
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    talks = write_jsonl(folder / "talks.jsonl", [as_row(talk) for talk in TALKS])
    return {"base_model": write_inputs(folder)["base_model"], "train": str(talks)}


def as_row(talk: list[tuple[str, str, float]]) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for question, answer, weight in talk:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "weight": weight},
        ]
    return {"messages": messages}


def words_of(talk: list[tuple[str, str, float]], loss: str) -> list[tuple[str, float]]:
    """The words of a conversation in the tiny model's template, each with its weight in the loss."""
    others = 1.0 if loss == "with_prompt" else 0.0
    words: list[tuple[str, float]] = []
    for place, (question, answer, weight) in enumerate(talk):
        share = 0 if loss == "last_answer" and place < len(talk) - 1 else weight
        words += [(word, others) for word in ("<user>", *question.split(), "<end>", "<assistant>")]
        words += [(word, share) for word in (*answer.split(), "<end>")]
    return words


@torch.no_grad()
def expected(model: Any, tokenizer: Any, loss: str) -> float:
    total = shares = 0.0
    for talk in TALKS:
        words = words_of(talk, loss)
        ids = torch.tensor([tokenizer.convert_tokens_to_ids([word for word, _ in words])])
        weights = torch.tensor([weight for _, weight in words[1:]])
        losses = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total, shares = total + float((losses * weights).sum()), shares + float(weights.sum())
    return total / shares


def check(method: str, loss: str, packing: int, folder: Path, inputs: dict[str, str]) -> None:
    # Packed, the four conversations have 70 words, and make one row; the last answer of the fourth has no weight.
    batch = 1 if packing else 3 if loss == "last_answer" else 4
    chosen = {"loss": loss, "packing": packing, "max_length": 80, "batch_size": batch}
    path = write_run(folder, inputs, steps=1, hyperparameters=chosen)
    assert import_module(f"training.recipes.{method}").main([str(path)]) == 0
    run = Run.read(read_record(path))
    model = load_in_4_bits(run) if method == "qlora" else load_model(run.base_model)
    first = events_of(folder, "metrics")[0]["loss"]
    assert first == pytest.approx(expected(model.eval(), load_tokenizer(run.base_model), loss), abs=2e-3)


@pytest.mark.parametrize("packing", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("loss", ["answers", "last_answer", "with_prompt"])
def test_each_choice_counts_its_tokens(loss: str, packing: int, tmp_path: Path, inputs: dict[str, str]) -> None:
    check("lora", loss, packing, tmp_path, inputs)


@pytest.mark.parametrize("method", ["qlora", "dora", "adalora", "galore", "full"])
@pytest.mark.slow
def test_every_method_counts_them(method: str, tmp_path: Path, inputs: dict[str, str]) -> None:
    check(method, "last_answer", 0, tmp_path, inputs)


def rates(folder: Path) -> list[float]:
    return [event["learning_rate"] for event in events_of(folder, "metrics")]


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_a_scheduler_is_transformers_own(scheduler: str, tmp_path: Path, inputs: dict[str, str]) -> None:
    from transformers import get_scheduler

    chosen = {"scheduler": scheduler, "warmup_steps": 2, "learning_rate": 0.01}
    path = write_run(tmp_path, inputs, steps=6, hyperparameters=chosen)
    assert import_module("training.recipes.lora").main([str(path)]) == 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    scheduled = get_scheduler(SCHEDULERS.get(scheduler, scheduler), optimizer, 2, 6)
    wanted = []
    for _ in range(6):
        wanted.append(scheduled.get_last_lr()[0])
        optimizer.step()
        scheduled.step()
    assert rates(tmp_path) == pytest.approx(wanted)


def weights_after(folder: Path, inputs: dict[str, str], **chosen: float) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    assert (
        import_module("training.recipes.lora").main([str(write_run(folder, inputs, steps=3, hyperparameters=chosen))])
        == 0
    )
    return load_file(folder / "output" / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_dropout_and_decay_change_the_training_and_a_resume_does_not(tmp_path: Path, inputs: dict[str, str]) -> None:
    plain = weights_after(tmp_path / "plain", inputs, checkpoint_steps=1)
    dropped = weights_after(tmp_path / "dropped", inputs, lora_dropout=0.5, checkpoint_steps=1)
    decayed = weights_after(tmp_path / "decayed", inputs, weight_decay=1.0)
    for other in (dropped, decayed):
        assert any(not torch.equal(plain[name], other[name]) for name in plain)
    (tmp_path / "dropped/output/checkpoints/checkpoint-3/complete").unlink()
    again = weights_after(tmp_path / "dropped", inputs, lora_dropout=0.5, checkpoint_steps=1)
    assert all(torch.equal(dropped[name], again[name]) for name in dropped)
