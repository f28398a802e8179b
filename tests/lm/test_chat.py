"""Calls, reasoning and weights of answers in chat templates; what a template leaves out is refused by name."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.lm.chat_tokenizer import TEMPLATES, byte_tokenizer, counted_runs, trl_tokenizer
from training.lm.token_sequences import DataError, tokenise

CALL = {"id": "c12345678", "type": "function", "function": {"name": "lookup", "arguments": {"n": 3}}}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "lookup", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
]
ANSWERED = {"role": "tool", "content": "The pier is the third.", "tool_call_id": "c12345678", "name": "lookup"}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def call_talk(text: str = "") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "Where is it?"},
        {"role": "assistant", "content": text, "tool_calls": [CALL]},
        ANSWERED,
        {"role": "assistant", "content": "At pier three."},
    ]


def runs_of(tokenizer: Any, messages: list[dict[str, Any]], **row: Any) -> list[str]:
    return counted_runs(tokenise({"messages": messages, **row}, tokenizer, 10**6), tokenizer)


@pytest.mark.parametrize("text", ["", "Let me look."])
@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_calls_are_counted_whole_and_tools_answers_never_or_refused_by_name(name: str, text: str) -> None:
    tokenizer = trl_tokenizer(name)
    try:
        runs = runs_of(tokenizer, call_talk(text), tools=TOOLS)
    except DataError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert re.search("does not render (tools|tool_calls|the text|messages)|refuses the conversation", refusal)
        return
    counted = "".join(runs)
    assert "pier is the third" not in counted
    assert "Where is it?" not in counted
    assert "lookup" in runs[0]
    assert "3" in runs[0]
    assert text in counted
    assert "At pier three." in runs[-1]


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_5_think", "glm4moe", "llama3_1", "gptoss", "lfm2_2_5", "gemma4_v2"]
)
def test_these_families_render_tools(name: str) -> None:
    assert runs_of(trl_tokenizer(name), call_talk(), tools=TOOLS)


@pytest.mark.parametrize("name", ["qwen3", "qwen3_6", "glm4moe", "gptoss", "nemotron_3_nano"])
def test_the_reasoning_of_a_last_answer_is_counted_and_of_an_earlier_one_only_if_rendered(name: str) -> None:
    tokenizer = trl_tokenizer(name)
    turns = [("Where?", "Count the piers.", "At three."), ("Sure?", "Count again.", "Yes.")]
    messages = [
        turn
        for question, thought, answer in turns
        for turn in (
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "reasoning_content": thought},
        )
    ]
    first, last = runs_of(tokenizer, messages)
    assert "At three." in first
    assert last.index("Count again.") < last.index("Yes.")
    text = tokenizer.decode(tokenise({"messages": messages}, tokenizer, 10**6).ids)
    assert ("Count the piers." in first) == ("Count the piers." in text)


@pytest.mark.parametrize(
    ("changed", "row", "lacking"),
    [
        ({"reasoning_content": "Hm."}, {}, "reasoning_content"),
        ({"tool_calls": [CALL]}, {}, "tool_calls"),
        ({}, {"tools": TOOLS}, "tools"),
    ],
)
def test_what_a_template_leaves_out_is_refused_by_name(
    changed: dict[str, Any], row: dict[str, Any], lacking: str
) -> None:
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There.", **changed}]
    with pytest.raises(DataError, match=f"does not render {lacking}"):
        runs_of(byte_tokenizer(CHATML), messages, **row)


def test_a_refusing_template_is_named_with_its_own_words() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    with pytest.raises(DataError, match="refuses the conversation: System role not supported"):
        runs_of(trl_tokenizer("gemma"), messages)


def test_a_template_that_changes_contents_falls_back_on_prefixes() -> None:
    shouting = (
        CHATML.replace("m.content", "m.content | upper")
        + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [{"role": "user", "content": "where?"}, {"role": "assistant", "content": "there."}]
    assert runs_of(byte_tokenizer(shouting), messages) == ["THERE.<|im_end|>"]


def test_a_rendered_text_ends_once() -> None:
    tokenizer = byte_tokenizer(CHATML)
    end = tokenizer.eos_token_id
    for text, ends in (("plain", 1), ("rendered</s>", 1), ("rendered<|im_end|>", 0)):
        assert tokenise({"text": text}, tokenizer, 99).ids.count(end) == ends
    assert tokenise({"prompt": "a", "completion": "b</s>"}, tokenizer, 99).ids.count(end) == 1
