"""Conversations with tools reach the template as a training renders them, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from serving_client.engine.chat_prompt import ChatRefused, chat_prompt
from serving_client.engine.completion_request import parse_chat
from serving_client.engine.errors import ApiError
from tests.lm.chat_tokenizer import trl_tokenizer
from tests.tiny_model import make_tokenizer
from training.lm.chat_template import prompt_text

TOOLS = [{"type": "function", "function": {"name": "lookup", "description": "d", "parameters": {"type": "object"}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "lookup", "arguments": '{"n": 3}'}}
TALK = [
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "pier 3", "tool_call_id": "c1"},
]


def parsed(**body: Any) -> Any:
    return parse_chat({"messages": TALK, "tools": TOOLS, **body})


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_5_think", "glm4moe", "llama3_1", "gptoss"])
def test_an_engine_renders_what_a_training_does(name: str) -> None:
    tokenizer, request = trl_tokenizer(name), parsed()
    read = {**CALL, "function": {"name": "lookup", "arguments": {"n": 3}}}
    row = [TALK[0], {"role": "assistant", "content": "", "tool_calls": [read]}, TALK[2]]
    prompt = chat_prompt(tokenizer, request.messages, request.tools)
    assert prompt == prompt_text(row, TOOLS, tokenizer)
    assert "pier 3" in prompt


def test_tools_that_the_template_leaves_out_are_refused() -> None:
    with pytest.raises(ChatRefused, match="does not render 'tools'") as caught:
        chat_prompt(make_tokenizer(), [{"role": "user", "content": "a bank"}], TOOLS)
    assert caught.value.field == "tools"


def test_calls_that_the_template_leaves_out_are_refused() -> None:
    with pytest.raises(ChatRefused, match="does not render 'tool_calls'"):
        chat_prompt(make_tokenizer(), parsed().messages, None)


def test_fields_and_messages_that_the_template_leaves_out_are_refused() -> None:
    tokenizer = make_tokenizer()
    talk = [{"role": "system", "content": "keep records"}, {"role": "user", "content": "a bank"}]
    sent_back = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "name": "Ann"}
    answer = {"role": "assistant", "content": "each risk", **sent_back}
    assert "each risk" in chat_prompt(tokenizer, parse_chat({"messages": [*talk, answer]}).messages, None)
    lost = {"function_call": {"name": "x"}, "audio": {"id": "a"}, "prefix": True, "weight": 0, "reasoning_content": "a"}
    for field, value in lost.items():
        messages = parse_chat({"messages": [*talk, {**answer, field: value}]}).messages
        with pytest.raises(ChatRefused, match=rf"messages\.2\.{field} is not rendered"):
            chat_prompt(tokenizer, messages, None)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['content'] }}{% endif %}{% endfor %}"
    )
    with pytest.raises(ChatRefused, match="does not render messages of the role 'system'"):
        chat_prompt(tokenizer, parse_chat({"messages": talk}).messages, None)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    assert chat_prompt(tokenizer, parse_chat({"messages": talk}).messages, None) == "KEEP RECORDSA BANK"


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "refusal"])
def test_a_part_that_is_no_text_is_refused_by_its_type(kind: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": kind, kind: {"url": "data:,"}}]
    with pytest.raises(ApiError, match=kind) as caught:
        parse_chat({"messages": [{"role": "user", "content": parts}]})
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "content", [0, False, {}, {"type": "text", "text": "a"}, [{"type": "text", "text": "a", "b": 1}]]
)
def test_content_that_is_not_read_is_refused(content: object) -> None:
    with pytest.raises(ApiError, match="content") as caught:
        parse_chat({"messages": [{"role": "user", "content": content}]})
    assert caught.value.param == "messages"


def test_notes_beside_a_text_are_no_part_of_it() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}, "annotations": []}
    (message,) = parse_chat({"messages": [{"role": "user", "content": [part]}]}).messages or ()
    assert message["content"] == "a"


def test_reasoning_reaches_a_template_that_knows_it_by_another_name() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['thinking'] or '' }}{{ m['content'] }}{% endfor %}"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "deep "}]
    assert chat_prompt(tokenizer, parse_chat({"messages": talk}).messages, None) == "adeep b"


def test_options_of_a_stream_need_one() -> None:
    with pytest.raises(ApiError, match="needs 'stream': true") as caught:
        parsed(stream_options={"include_usage": True})
    assert caught.value.param == "stream_options"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tools": [{"name": "x"}]}, "tools"),
        ({"tools": {"type": "function"}}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools"),
        ({"tools": [*TOOLS, *TOOLS]}, "tools"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]}]}, "messages"),
    ],
)
def test_broken_tools_are_refused_by_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(**body)
    assert caught.value.param == field
