"""The held-out loss and the reading order."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from tests.tiny_model import make_model, make_tokenizer, sentences
from training.lm import evaluation
from training.lm.token_sequences import TokenSequence, tokenised
from training.recipes.training_loop.sampling_order import reading_order


@pytest.fixture(scope="module")
def sequences() -> list[TokenSequence]:
    answered = [{"prompt": row["text"], "completion": " a bank shall report"} for row in sentences(6, seed=1)]
    return tokenised([*sentences(6), *answered], make_tokenizer(), 64)


def test_the_loss_is_the_mean_over_completion_tokens(sequences) -> None:
    model, total, tokens = make_model().eval(), 0.0, 0
    for sequence in sequences:
        ids, labels = torch.tensor([sequence.ids]), torch.tensor([sequence.labels])
        total += float(model(input_ids=ids, labels=labels).loss.detach()) * sequence.targets
        tokens += sequence.targets
    measured = evaluation.held_out_loss(model, sequences, 1)
    assert measured.tokens == tokens
    assert measured.loss == pytest.approx(total / tokens, rel=1e-5)


def test_batching_and_order_change_nothing(sequences, monkeypatch: pytest.MonkeyPatch) -> None:
    once = evaluation.held_out_loss(make_model(), sequences, 1)
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", 40)
    again = evaluation.held_out_loss(make_model(), random.Random(0).sample(sequences, len(sequences)), 1)
    assert again.loss == pytest.approx(once.loss, rel=1e-5)


def test_the_sample_is_drawn_by_the_seed_within_the_tokens(sequences) -> None:
    drawn = evaluation.held_out_sample(sequences, 60, seed=1)
    assert sum(sequence.targets for sequence in drawn) <= 60
    assert (
        drawn == evaluation.held_out_sample(sequences, 60, seed=1) != evaluation.held_out_sample(sequences, 60, seed=2)
    )
    assert len(evaluation.held_out_sample(sequences, 1, seed=0)) == 1


def test_a_sorted_file_is_measured_on_every_source_in_proportion() -> None:
    rows = [{"text": "a bank shall report", "source": "short"}] * 60 + [
        {"text": "each risk " * 4, "source": "long"}
    ] * 20
    drawn = evaluation.held_out_sample(tokenised(rows, make_tokenizer(), 64), 160, seed=0)
    sources = Counter(sequence.source for sequence in drawn)
    assert sources["short"] == pytest.approx(3 * sources["long"], abs=3)


def test_a_row_that_does_not_fit_is_passed_over() -> None:
    rows = [{"text": "each risk " * 20}] + [{"text": "a bank"}] * 30
    drawn = evaluation.held_out_sample(tokenised(rows, make_tokenizer(), 64), 60, seed=3)
    assert len(drawn) >= 9


def test_the_model_keeps_its_mode(sequences) -> None:
    model = make_model().train()
    evaluation.held_out_loss(model, sequences[:1], 1)
    assert model.training


def test_the_order_is_of_whole_epochs_and_fixed_by_the_seed() -> None:
    lengths = [length % 13 + 3 for length in range(25)]
    order = reading_order(lengths, 100, 4, seed=1)
    assert Counter(order) == dict.fromkeys(range(25), 4)
    assert order == reading_order(lengths, 100, 4, seed=1) != reading_order(lengths, 100, 4, seed=2)


def test_batches_hold_neighbours_in_length() -> None:
    lengths = [random.Random(place).randrange(5, 200) for place in range(64)]
    order = reading_order(lengths, 64, 4, seed=0)
    padded = sum(4 * max(lengths[place] for place in order[at : at + 4]) for at in range(0, 64, 4))
    assert padded < 1.2 * sum(lengths)
