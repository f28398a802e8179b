"""DPO and KTO on a tiny model: TRL's losses, a margin that rises on held-out rows, an exact resume, and refusals."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.recipes.preferences import pairs
from tests.recipes.runs import PLAN, events_of, losses, write_inputs, write_run
from tests.tiny_model import make_model, make_tokenizer, write_jsonl
from tests.waiting import wait_until
from training.lm.preference import Answer, Pair
from training.lm.token_sequences import TokenSequence
from training.recipes import lora
from training.recipes.preference.objectives import Dpo, Kto, Orpo
from training.recipes.run_file import Run
from training.recipes.training_loop.trainer import Method, make_trainer

CHOSEN = {"learning_rate": 0.01, "eval_tokens": 1000, "max_length": 64}
OBJECTIVES = {"dpo": Dpo, "kto": Kto}
EVERY = {**OBJECTIVES, "orpo": Orpo}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    rows = {
        "train": str(write_jsonl(folder / "pairs.jsonl", pairs(60))),
        "eval": str(write_jsonl(folder / "held_out.jsonl", pairs(12, seed=5))),
    }
    return {**write_inputs(folder), **rows}


@pytest.fixture(autouse=True)
def sigterm_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def train(method: str, folder: Path, inputs: dict[str, str], steps: int = 20, **changes: Any) -> dict[str, Any]:
    path = write_run(folder, inputs, steps=steps, hyperparameters=CHOSEN | changes)
    assert importlib.import_module(f"training.recipes.{method}").main([str(path)]) == 0
    return dict(json.loads((folder / "output/result.json").read_bytes()))


def test_orpo_raises_the_held_out_margin_and_the_likelihood(inputs: dict[str, str], tmp_path: Path) -> None:
    result = train("orpo", tmp_path, inputs, eval_steps=10)
    before, after = events_of(tmp_path, "evaluation")
    # Its rewards are beta (0.1) times nats a token, where those of DPO are of whole answers.
    assert after["reward_margin"] == result["reward_margin"] > before["reward_margin"] + 0.02
    assert after["reward_accuracy"] > 0.9
    assert result["loss_after"] < result["loss_before"] - 0.3
    assert {"nll_loss", "reward_margin", "reward_accuracy"} <= set(events_of(tmp_path, "metrics")[0])


@pytest.mark.parametrize("method", OBJECTIVES)
def test_the_held_out_margin_rises_from_nothing(method: str, inputs: dict[str, str], tmp_path: Path) -> None:
    result = train(method, tmp_path, inputs, eval_steps=10)
    before, after = events_of(tmp_path, "evaluation")
    assert before["loss"] == pytest.approx({"dpo": 0.693147, "kto": 0.5}[method], abs=1e-6)
    assert before["reward_margin"] == pytest.approx(0, abs=1e-9)
    assert after["reward_margin"] == result["reward_margin"] > 0.5
    assert after["reward_accuracy"] == result["reward_accuracy"] > 0.9
    assert after["reward_chosen"] > 0 > after["reward_rejected"]
    assert result["loss_after"] < result["loss_before"] - 0.1
    steps = events_of(tmp_path, "metrics")
    # The first step begins at the base. A batch of KTO's may hold answers of one kind alone, and has no margin then.
    assert {value for name, value in steps[0].items() if name in ("reward_chosen", "reward_rejected")} == {0}
    margins = [step["reward_margin"] for step in steps if "reward_margin" in step]
    assert margins[-1] > margins[0]
    assert [step["step"] for step in steps if "held_out_reward_margin" in step] == [10, 20]
    assert result["best_step"] == 20
    assert {path.name for path in (tmp_path / "output/adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize("method", EVERY)
def test_the_held_out_loss_is_trls_in_float64(method: str, inputs: dict[str, str], tmp_path: Path) -> None:
    """All held-out rows are one batch of TRL's, on an adapter that changes the model."""
    chosen = CHOSEN | {"batch_size": 8, "desirable_weight": 1.2, "undesirable_weight": 0.7, "beta": 0.3}
    changes = {"train": inputs["eval"], "rank_pattern": {}, "alpha_pattern": {}}
    run = Run.read(json.loads(write_run(tmp_path, inputs, steps=1, hyperparameters=chosen, **changes).read_bytes()))
    tokenizer, objective = make_tokenizer(), EVERY[method]()
    material = objective.read(run, tokenizer)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=PLAN["target_modules"], init_lora_weights=False)
    made = Method(method, lambda *_: {}, objective=objective)
    trainer = make_trainer(run, made, make_model(), adapter, tokenizer, material)
    trainer.model.double().eval()
    score_in_float64(trainer.model.get_base_model())
    with torch.no_grad():
        expected = float(trainer.compute_loss(trainer.model, trainer.data_collator(list(material.rows))))
    held_out = replace(material, held_out=[row_of(row) for row in material.rows])
    measured = objective.measure(trainer.model, run, held_out, tokenizer.pad_token_id)
    # TRL's ORPO rounds log-probabilities to float32.
    exact = 1e-6 if method == "orpo" else 1e-12
    logged = trainer._stored_metrics["train"] if method == "orpo" else trainer._metrics["eval"]
    assert measured.loss == pytest.approx(expected, rel=exact)
    for ours, trls in (("reward_chosen", "chosen"), ("reward_rejected", "rejected"), ("reward_margin", "margins")):
        assert measured.rewards[ours] == pytest.approx(
            logged[f"rewards/{trls}"][0], rel=1e-4 if exact > 1e-9 else exact
        )
    if method != "kto":
        assert measured.rewards["reward_accuracy"] == pytest.approx(logged["rewards/accuracies"][0])


def score_in_float64(model: Any) -> None:
    """Let the head that TRL adds compute in float64; its own sums up in float32."""
    plain = type(model).forward

    def forward(*arguments: Any, fused_lm_head: bool = False, labels: Any = None, **fields: Any) -> Any:
        outputs = plain(model, *arguments, **fields)
        if not fused_lm_head:
            return outputs
        targets = labels[:, 1:]
        logs = outputs.logits[:, :-1].log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        scored = logs.masked_fill(targets == -100, 0)
        unused = torch.zeros_like(scored)
        return SimpleNamespace(log_probs=scored, entropy=unused, mean_logits=unused, is_top1=unused.bool())

    model.forward = forward


def row_of(columns: dict[str, Any]) -> Pair | Answer:
    """Return a row as it was before the collator's columns."""
    names = [name.removesuffix("_ids") for name in columns if name.endswith("_ids") and name != "other_ids"]
    sequences = [TokenSequence(columns[f"{name}_ids"], columns[f"{name}_labels"]) for name in names]
    return Answer(*sequences, columns["label"]) if "label" in columns else Pair(*sequences)


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_a_stopped_run_goes_on_exactly(method: str, inputs: dict[str, str], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(method, whole, inputs, steps=60, eval_steps=20)
    path = write_run(parts, inputs, steps=60, hyperparameters=CHOSEN | {"eval_steps": 20})
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-m", f"training.recipes.{method}", str(path)])
    wait_until(lambda: len(losses(parts)) >= 7, timeout_s=240, what="seven steps")
    child.terminate()
    assert child.wait(120) == 143
    assert 7 <= max(losses(parts)) < 60
    assert not (parts / "output/result.json").exists()
    train(method, parts, inputs, steps=60, eval_steps=20)
    assert losses(parts) == losses(whole)
    name = "output/adapter/adapter_model.safetensors"
    assert (parts / name).read_bytes() == (whole / name).read_bytes()


def test_half_batches_accumulate_to_the_same_step(inputs: dict[str, str], tmp_path: Path) -> None:
    whole = train("dpo", tmp_path / "whole", inputs, steps=3)
    halves = train("dpo", tmp_path / "halves", inputs, steps=3, batch_size=2, gradient_accumulation=2)
    # Batches are put together by length, so that the rows of a step differ; one epoch's rows are the same.
    assert whole["train_rows"]["rows"] == halves["train_rows"]["rows"]
    first = [events_of(tmp_path / name, "metrics")[0] for name in ("whole", "halves")]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=1e-6) == pytest.approx(0.693147, abs=1e-6)
    assert first[1]["grad_norm"] < 2 * first[0]["grad_norm"]


def test_start_values_keep_the_base_as_reference(inputs: dict[str, str], tmp_path: Path) -> None:
    path = write_run(tmp_path, inputs, steps=4, init="eva", hyperparameters=CHOSEN)
    assert importlib.import_module("training.recipes.dpo").main([str(path)]) == 0
    assert events_of(tmp_path, "metrics")[0]["reward_margin"] == 0
    config = json.loads((tmp_path / "output/adapter/adapter_config.json").read_bytes())
    assert config["peft_type"] == "LORA"


@pytest.mark.parametrize(
    ("method", "rows", "chosen", "fragment"),
    [
        ("dpo", [{"prompt": "a", "completion": "bank"}], {}, "chosen is missing"),
        ("dpo", [{"prompt": "a", "completion": "bank", "label": True}], {}, "the method learns from pairs"),
        (
            "dpo",
            [{"prompt": "a", "chosen": "bank", "rejected": ["bank"]}],
            {},
            "rejected and prompt must both be texts",
        ),
        ("kto", [{"prompt": "a", "completion": "bank", "label": "yes"}], {}, "label must be true or false"),
        ("kto", pairs(4), {"batch_size": 1}, "batch_size: KTO compares the answers of a batch"),
        ("dpo", pairs(4), {"packing": 1}, "packing: preference rows are not packed"),
        ("orpo", pairs(4), {"loss": "last_answer"}, "loss: whole answers are compared"),
        ("kto", pairs(4), {"lora_dropout": 0.1}, "lora_dropout: answers are compared without dropout"),
        (
            "dpo",
            [{"prompt": "a " * 70, "chosen": "bank", "rejected": "risk"}],
            {},
            "no row of rows.jsonl has its answers",
        ),
    ],
)
def test_what_it_cannot_learn_from_is_named(
    inputs: dict[str, str], tmp_path: Path, method: str, rows: list[Any], chosen: dict[str, Any], fragment: str
) -> None:
    changes = {"train": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "hyperparameters": CHOSEN | chosen}
    path = write_run(tmp_path, inputs, **changes)
    assert importlib.import_module(f"training.recipes.{method}").main([str(path)]) == 2
    (error,) = events_of(tmp_path, "error")
    assert fragment in error["message"]


@pytest.fixture(scope="module")
def mixed(inputs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A dataset of other pairs beside the first, of half its weight."""
    folder = tmp_path_factory.mktemp("mixed")
    rows = [{"prompt": f"the law {n}", "chosen": "under article", "rejected": "unless exempt"} for n in range(12)]
    files = {
        name: str(write_jsonl(folder / f"{name}.jsonl", rows[:size])) for name, size in (("train", 12), ("eval", 5))
    }
    return {**inputs, "data_name": "support", "mixture": [{"name": "legal", "weight": 0.5, **files}]}


@pytest.mark.parametrize("method", EVERY)
def test_a_run_reads_each_dataset_of_preferences_in_its_share(
    method: str, mixed: dict[str, Any], tmp_path: Path
) -> None:
    path = write_run(tmp_path, mixed, steps=15, hyperparameters=CHOSEN | {"eval_tokens": 90})
    tokenizer = make_tokenizer()
    material = EVERY[method]().read(Run.read(json.loads(path.read_bytes())), tokenizer)
    ids = "answer_ids" if method == "kto" else "chosen_ids"
    assert sum(tokenizer.decode(row[ids]).startswith("the law") for row in material.rows) == 20
    assert len(material.rows) == 60
    support, legal = material.parts
    assert (support.name, legal.name, support.rows + legal.rows) == ("support", "legal", len(material.held_out))
    assert legal.rows > 0 < support.rows


def test_each_dataset_of_preferences_has_its_held_out_loss(mixed: dict[str, Any], tmp_path: Path) -> None:
    result = train("dpo", tmp_path, mixed, steps=6)
    support, legal = result["held_out"]
    assert (support["dataset"], legal["dataset"], legal["rows"]) == ("support", "legal", 5)
    assert legal["loss_before"] == pytest.approx(0.693147, abs=1e-6)
    whole = sum(part["loss_after"] * part["rows"] for part in (support, legal)) / result["eval_rows"]
    assert result["loss_after"] == pytest.approx(whole)


def test_a_plain_method_refuses_pairs(inputs: dict[str, str], tmp_path: Path) -> None:
    assert lora.main([str(write_run(tmp_path, inputs))]) == 2
    assert "completion is missing" in events_of(tmp_path, "error")[0]["message"]


def test_chats_are_rendered_by_the_template_and_only_answers_count(inputs: dict[str, str], tmp_path: Path) -> None:
    question = [{"role": "user", "content": "the bank"}, {"role": "assistant", "content": "shall"}]
    row = {
        "prompt": [*question, {"role": "user", "content": "report"}],
        "chosen": [{"role": "assistant", "content": "each risk"}],
        "rejected": [{"role": "assistant", "content": "law"}],
    }
    path = write_run(tmp_path, inputs, train=str(write_jsonl(tmp_path / "rows.jsonl", [row] * 4)))
    material = Dpo().read(Run.read(json.loads(path.read_bytes())), tokenizer := make_tokenizer())
    first = material.rows[0]
    for side, text in (("chosen", "each risk <end>"), ("rejected", "law <end>")):
        counted = [token for token in first[f"{side}_labels"] if token != -100]
        assert tokenizer.decode(counted) == text
        assert tokenizer.decode(first[f"{side}_ids"]).startswith("<user> the bank <end> <assistant> shall <end>")
