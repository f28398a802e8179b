"""Several datasets in one run: the shares of what is read, whole epochs of each, an exact resume, and their losses."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recipes.runs import events_of, losses, write_inputs, write_run
from tests.tiny_model import write_jsonl
from training.lm.base_model import load_model, load_tokenizer
from training.lm.evaluation import held_out_loss
from training.lm.token_sequences import read_rows, tokenised
from training.recipes import lora
from training.recipes.run_file import Run, read_record
from training.recipes.training_loop.batches import read_material
from training.recipes.training_loop.mixture import rounds, rows_of_an_epoch, shares_of
from training.recipes.training_loop.sampling_order import packed, reading_order

SIZES = st.lists(st.integers(1, 60), min_size=2, max_size=4)
WEIGHTS = st.lists(st.sampled_from([0.01, 0.3, 1, 2, 7]), min_size=4, max_size=4)


def owner(place: int, sizes: list[int]) -> int:
    return next(n for n in range(len(sizes)) if place < sum(sizes[: n + 1]))


@settings(deadline=None)
@given(sizes=SIZES, weights=WEIGHTS, seed=st.integers(0, 3), total=st.sampled_from([0, 40, 1000]))
def test_rounds_keep_the_shares_and_whole_epochs_of_each_dataset(
    sizes: list[int], weights: list[float], seed: int, total: int
) -> None:
    shares = shares_of(weights[: len(sizes)])
    draw, chance = rounds(sizes, shares, total), random.Random(seed)
    read: Counter[int] = Counter()
    for _ in range(15):
        rows = draw(chance)
        assert len(set(rows)) == len(rows)
        read.update(rows)
        total = sum(read.values())
        for number, share in enumerate(shares):
            own = [read[place] for place in range(sum(sizes)) if owner(place, sizes) == number]
            assert abs(sum(own) - share * total) <= len(sizes)
            assert max(own) - min(own) <= 1


@settings(deadline=None)
@given(sizes=st.lists(st.integers(20, 60), min_size=2, max_size=3), seed=st.integers(0, 3))
def test_no_batch_holds_a_row_twice_and_the_seed_decides(sizes: list[int], seed: int) -> None:
    shares = shares_of([1.0, 2.0, 0.5][: len(sizes)])
    lengths = [1 + place % 7 for place in range(sum(sizes))]
    order = reading_order(lengths, 240, 8, seed, rounds(sizes, shares))
    assert order == reading_order(lengths, 240, 8, seed, rounds(sizes, shares))
    assert all(len(set(order[at : at + 8])) == 8 for at in range(0, 240, 8))
    groups = packed(lengths, 60, 16, seed, rounds(sizes, shares))
    assert all(len(set(group)) == len(group) for group in groups)


def test_an_epoch_reads_every_row_at_least_once() -> None:
    sizes, shares = [100, 10], shares_of([1, 1])
    rows = rows_of_an_epoch(sizes, shares)
    assert rows == 200
    order = reading_order([5] * 110, rows, 4, 0, rounds(sizes, shares))
    assert set(order) == set(range(110))
    assert sum(place >= 100 for place in order) == pytest.approx(100, abs=2)
    assert rows_of_an_epoch([37], [1.0]) == 37


LEGAL = [{"prompt": f"the law {n}", "completion": "under article"} for n in range(12)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("inputs")
    legal = {
        "name": "legal",
        "train": str(write_jsonl(folder / "legal.jsonl", LEGAL)),
        "eval": str(write_jsonl(folder / "legal-eval.jsonl", LEGAL[:5])),
        "weight": 0.5,
    }
    return {**write_inputs(folder), "data_name": "support", "mixture": [legal]}


@pytest.mark.parametrize("packing", [0, 1])
def test_a_run_reads_each_dataset_in_its_share(tmp_path: Path, inputs: dict[str, Any], packing: int) -> None:
    path = write_run(tmp_path, inputs, steps=15, hyperparameters={"packing": packing, "seed": 3})
    run = Run.read(read_record(path))
    tokenizer = load_tokenizer(run.base_model)
    rows = read_material(run, tokenizer).rows
    ends = Counter("article <end>" in tokenizer.decode(row["input_ids"]) for row in rows)
    if packing:
        assert sum(tokenizer.decode(row["input_ids"]).count("under article <end>") for row in rows) > 15
    else:
        assert ends[True] == 20
        assert sum(ends.values()) == 60


def test_each_dataset_has_its_held_out_loss(tmp_path: Path, inputs: dict[str, Any]) -> None:
    path = write_run(tmp_path, inputs, steps=6, hyperparameters={"eval_tokens": 90})
    assert lora.main([str(path)]) == 0
    result = json.loads((tmp_path / "output/result.json").read_bytes())
    support, legal = result["held_out"]
    assert (support["dataset"], legal["dataset"]) == ("support", "legal")
    assert result["eval_tokens"] == support["tokens"] + legal["tokens"]
    assert result["eval_rows"] == support["rows"] + legal["rows"]
    whole = sum(part["loss_after"] * part["tokens"] for part in (support, legal)) / result["eval_tokens"]
    assert result["loss_after"] == pytest.approx(whole)
    base, tokenizer = load_model(Path(inputs["base_model"])), load_tokenizer(Path(inputs["base_model"]))
    rows = tokenised(read_rows(Path(inputs["mixture"][0]["eval"])), tokenizer, 32)
    assert len(rows) == legal["rows"]
    assert legal["loss_before"] == pytest.approx(held_out_loss(base, rows, 1).loss, rel=1e-4)


def test_a_resumed_mixture_goes_on_exactly(tmp_path: Path, inputs: dict[str, Any]) -> None:
    path = write_run(tmp_path, inputs, steps=15)
    assert lora.main([str(path)]) == 0
    whole = losses(tmp_path)
    (tmp_path / "output/checkpoints/checkpoint-15/complete").unlink()
    (tmp_path / "events.jsonl").unlink()
    assert lora.main([str(path)]) == 0
    assert losses(tmp_path) == {step: loss for step, loss in whole.items() if step > 10}


def test_a_dataset_of_which_nothing_can_be_trained_is_named(tmp_path: Path, inputs: dict[str, Any]) -> None:
    long = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "the bank " * 40, "completion": "law"}] * 3)
    part = {"name": "long", "train": str(long), "weight": 1.0}
    path = write_run(tmp_path, {**inputs, "mixture": [part]}, steps=2)
    assert lora.main([str(path)]) == 2
    assert "mixture.0.train" in events_of(tmp_path, "error")[0]["message"]


def test_epochs_of_a_mixture_count_the_rows_of_all(tmp_path: Path, inputs: dict[str, Any]) -> None:
    path = write_run(tmp_path, inputs, hyperparameters={"epochs": 1, "batch_size": 4})
    run = Run.read(read_record(path))
    # 60 rows of weight 1 and 12 of weight 0.5: 90 rows until each of the 60 is read.
    assert read_material(run, load_tokenizer(run.base_model)).steps == 23
