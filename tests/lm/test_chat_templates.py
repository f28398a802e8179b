"""The loss counts the answers and their end tokens, and nothing else, in every chat template that TRL ships."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lm.chat_tokenizer import TEMPLATES, counted_runs, trl_tokenizer
from training.lm.token_sequences import DataError, tokenise

UNCUT = 10**6
END = re.compile(r"\s*(<[^<>\s]+>)?")
# Templates of image models, which look for parts and render no text, or raise.
REFUSED = {"idefics3", "idefics3_training", "llava_next", "llava_next_training", "smolvlm", "smolvlm_training"}
NO_SYSTEM = {"gemma", "gemma_training"}
MUST_TRAIN = (
    "qwen3",
    "qwen3_5_think",
    "qwen3_6",
    "deepseek_r1_distill",
    "deepseekv3",
    "glm4moe",
    "llama3",
    "llama3_1",
    "llama3_2",
    "gemma3",
    "phi3",
    "phi3_5",
)
TWO_TURNS = [
    {"role": "user", "content": "Where is it?"},
    {"role": "assistant", "content": "At pier three."},
    {"role": "user", "content": "Stay?"},
    {"role": "assistant", "content": "No, change it."},
]
# As published with Mistral 7B Instruct v0.3, which TRL does not ship.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + '[/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
cached_tokenizer = cache(trl_tokenizer)


def runs_of(name: str, messages: list[dict[str, Any]]) -> list[str]:
    tokenizer = cached_tokenizer(name)
    return counted_runs(tokenise({"messages": messages}, tokenizer, UNCUT), tokenizer)


def test_two_turns_are_counted_with_their_ends_in_every_template(capsys: pytest.CaptureFixture[str]) -> None:
    refused = set()
    for name in TEMPLATES:
        try:
            runs = runs_of(name, TWO_TURNS)
        except DataError:
            refused.add(name)
            continue
        for run, answer in zip(runs, ("At pier three.", "No, change it."), strict=True):
            assert run.startswith(answer), name
            assert re.fullmatch(r"<[^<>\s]+>", run.removeprefix(answer)), name
    with capsys.disabled():
        print(f"\n{len(TEMPLATES) - len(refused)} templates train, {len(refused)} are refused: {sorted(refused)}")  # noqa: T201
    assert refused == REFUSED
    assert not refused & set(MUST_TRAIN)


def test_mistrals_template_counts_answers_and_ends() -> None:
    from tests.lm.chat_tokenizer import byte_tokenizer

    tokenizer = byte_tokenizer(MISTRAL)
    runs = counted_runs(tokenise({"messages": TWO_TURNS}, tokenizer, UNCUT), tokenizer)
    assert runs == ["At pier three.</s>", "No, change it.</s>"]


PIECES = [*"ab .\n<>{}\"'|/#:é[]", "user", "assistant", "<|im_end|>", "At"]
TEXT = st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join).filter(lambda text: text.strip())


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    turns = draw(st.integers(1, 3))
    messages = [{"role": "system", "content": draw(TEXT)}] if draw(st.booleans()) else []
    for _ in range(turns):
        messages += [{"role": "user", "content": draw(TEXT)}, {"role": "assistant", "content": draw(TEXT)}]
    return messages


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - REFUSED))
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(messages=conversations())
def test_exactly_the_answers_and_their_ends_are_counted(name: str, messages: list[dict[str, str]]) -> None:
    if name in NO_SYSTEM:
        messages = [turn for turn in messages if turn["role"] != "system"]
    answers = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    runs = runs_of(name, messages)
    assert len(runs) == len(answers)
    for run, answer in zip(runs, answers, strict=True):
        begin, _, rest = run.partition(answer.strip())
        assert begin in ("", answer[: len(answer) - len(answer.lstrip())])
        assert END.fullmatch(rest)
        assert rest.strip()
