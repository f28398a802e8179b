"""Tokens that the loss counts: every answer, the last one, or prompts as well; an answer of weight 0 never."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lm.chat_tokenizer import counted_runs, trl_tokenizer
from training.lm.token_sequences import IGNORED, LOSSES, TokenSequence, tokenise
from training.recipes.training_loop.batches import joined

UNCUT = 10**6
TEMPLATES = ("qwen2_5", "qwen3", "llama3", "deepseekv3", "gemma3", "glm4moe", "phi3")
tokenizer_of = cache(trl_tokenizer)
WORDS = st.lists(st.sampled_from(["ab", " ", "\n", "é", "<b>", "user", "At"]), min_size=1, max_size=8)
TEXT = WORDS.map("".join).filter(lambda text: bool(text.strip()))


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 3))):
        weight = draw(st.sampled_from([None, 0, 1, 0.5]))
        answer = {"role": "assistant", "content": draw(TEXT)}
        messages += [
            {"role": "user", "content": draw(TEXT)},
            answer if weight is None else {**answer, "weight": weight},
        ]
    return {"messages": messages, "weight": draw(st.sampled_from([1, 0.5]))}


def places_of(sequence: TokenSequence) -> set[int]:
    return {place for place, label in enumerate(sequence.labels) if label != IGNORED}


def read(row: dict[str, Any], name: str, loss: str) -> TokenSequence:
    return tokenise(row, tokenizer_of(name), UNCUT, loss)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(row=rows())
def test_exactly_what_was_chosen_is_counted(name: str, row: dict[str, Any]) -> None:
    messages = row["messages"]
    unweighted = [{key: value for key, value in turn.items() if key != "weight"} for turn in messages]
    every = read({"messages": unweighted}, name, "answers")
    answers, last, prompts = (read(row, name, loss) for loss in LOSSES)
    assert every.ids == answers.ids == last.ids == prompts.ids

    silent = places_of(every) - places_of(answers)
    assert places_of(answers) <= places_of(every)
    assert places_of(prompts) == set(range(len(prompts.ids))) - silent

    final = messages[-1]
    alone = read({"messages": [*[{**turn, "weight": 0} for turn in messages[:-1]], final]}, name, "answers")
    assert places_of(last) == places_of(alone)
    assert len(counted_runs(last, tokenizer_of(name))) == (final.get("weight", 1) > 0)

    own = [row["weight"] * turn.get("weight", 1) for turn in messages if turn["role"] == "assistant"]
    assert {weight for weight in weights_of(answers) if weight} == {weight for weight in own if weight}
    assert {weights_of(prompts)[place] for place in places_of(prompts) - places_of(answers)} == {row["weight"]}
    assert all(weights_of(prompts)[place] == weights_of(answers)[place] for place in places_of(answers))


def weights_of(sequence: TokenSequence) -> list[float]:
    return sequence.weights or [float(label != IGNORED) for label in sequence.labels]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(packed=st.lists(rows(), min_size=2, max_size=4), loss=st.sampled_from(LOSSES))
def test_a_packed_row_counts_what_its_rows_count(packed: list[dict[str, Any]], loss: str) -> None:
    sequences = [read(row, "qwen2_5", loss) for row in packed]
    whole = joined(sequences)
    borders = [0]
    for length in whole["seq_lengths"]:
        borders.append(borders[-1] + length)
    for (start, end), sequence in zip(pairwise(borders), sequences, strict=True):
        assert whole["input_ids"][start:end] == sequence.ids
        assert whole["labels"][start:end] == sequence.labels
        assert whole["loss_weights"][start:end] == (sequence.weights or [1.0] * len(sequence.ids))


@pytest.mark.parametrize(
    ("row", "counted"),
    [
        ({"prompt": "Where? ", "completion": "At pier three."}, "Where? At pier three.</s>"),
        ({"text": "At pier three."}, "At pier three.</s>"),
        ({"prompt": "Where? ", "completion": "At pier three.", "weight": 0}, ""),
    ],
)
def test_a_prompt_is_counted_by_choice(row: dict[str, Any], counted: str) -> None:
    assert "".join(counted_runs(read(row, "qwen2_5", "with_prompt"), tokenizer_of("qwen2_5"))) == counted


@pytest.mark.parametrize("loss", ["answers", "last_answer"])
def test_a_prompts_one_completion_is_its_last_answer(loss: str) -> None:
    row = {"prompt": "Where? ", "completion": "At pier three."}
    assert counted_runs(read(row, "qwen2_5", loss), tokenizer_of("qwen2_5")) == ["At pier three.</s>"]
