"""Every field that vLLM's and OpenAI's requests have: honoured, or refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from serving_client.engine.completion_request import parse_chat, parse_completion
from serving_client.engine.errors import ApiError

BOTH = {
    "add_special_tokens": False,
    "allowed_token_ids": [1],
    "bad_words": ["bank"],
    "cache_salt": "pepper",
    "ec_transfer_params": {"a": 1},
    "echo": True,
    "frequency_penalty": 0.5,
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "kv_transfer_params": {"a": 1},
    "length_penalty": 2.0,
    "logit_bias": {"1": 5},
    "logprob_token_ids": [1],
    "logprobs": 0,
    "max_tokens": 3,
    "min_p": 0.1,
    "min_tokens": 2,
    "model": "tiny",
    "n": 2,
    "presence_penalty": 0.5,
    "priority": 1,
    "prompt_logprobs": 0,
    "repetition_detection": {"max_pattern_size": 2},
    "repetition_penalty": 1.1,
    "request_id": "r",
    "response_format": {"type": "json_object"},
    "return_mm_kwargs": False,
    "return_token_ids": True,
    "return_token_offsets": True,
    "return_tokens_as_token_ids": True,
    "routed_experts_prompt_start": 1,
    "seed": 1,
    "session_id": "s",
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "stop": ["x"],
    "stop_token_ids": [1],
    "stream": True,
    "stream_interval": 2,
    "structured_outputs": {"regex": "a"},
    "temperature": 0.5,
    "thinking_token_budget": 1,
    "top_k": 5,
    "top_p": 0.5,
    "truncate_prompt_tokens": 1,
    "truncation_side": "left",
    "use_beam_search": True,
    "user": "u",
    "vllm_xargs": {"a": 1},
    "watermarking": True,
    # Of earlier releases.
    "guided_choice": ["a"],
    "guided_decoding_backend": "outlines",
    "guided_grammar": "root ::= 'a'",
    "guided_json": {"type": "object"},
    "guided_regex": "a",
    "guided_whitespace_pattern": " ",
    "logits_processors": ["a"],
    "early_stopping": True,
}
OF_COMPLETIONS = BOTH | {"best_of": 2, "prompt_embeds": "AAAA", "suffix": "end"}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
OF_CHATS = BOTH | {
    "add_generation_prompt": False,
    "audio": {"voice": "alloy"},
    "chat_template": "{{ messages }}",
    "chat_template_kwargs": {"enable_thinking": False},
    "continue_final_message": True,
    "documents": [{"text": "a"}],
    "function_call": {"name": "look_up"},
    "functions": [{"name": "look_up"}],
    "include_reasoning": False,
    "logprobs": True,
    "max_completion_tokens": 3,
    "media_io_kwargs": {"a": {}},
    "metadata": {"a": "b"},
    "mm_processor_kwargs": {"a": 1},
    "modalities": ["audio"],
    "moderation": {"model": "omni-moderation-latest"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "a"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "return_prompt_text": True,
    "safety_identifier": "u",
    "service_tier": "flex",
    "store": True,
    "tool_choice": "required",
    "tools": TOOLS,
    "top_logprobs": 2,
    "verbosity": "low",
    "web_search_options": {"search_context_size": "low"},
}
# They change no answer: they say who asks and why, or what may be cached.
ANNOTATIONS = {
    "cache_salt",
    "metadata",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "user",
}
HONOURED = {
    "ignore_eos",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "model",
    "n",
    "prompt_logprobs",
    "response_format",
    "return_token_ids",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "temperature",
    "top_k",
    "top_p",
}
HONOURED_IN = {
    parse_completion: HONOURED | {"echo"},
    parse_chat: HONOURED | {"max_completion_tokens", "parallel_tool_calls", "tool_choice", "tools", "top_logprobs"},
}
NEEDED = {parse_completion: {"prompt": "a"}, parse_chat: {"messages": [{"role": "user", "content": "a"}]}}
# What a field means only beside another one.
BESIDE = {"tool_choice": {"tools": TOOLS}, "parallel_tool_calls": {"tools": TOOLS}, "top_logprobs": {"logprobs": True}}


@pytest.mark.parametrize("parse", [parse_completion, parse_chat])
def test_each_is_honoured_or_refused_by_name(parse: Any) -> None:
    fields = OF_COMPLETIONS if parse is parse_completion else OF_CHATS
    for name, value in fields.items():
        beside = BESIDE.get(name, {}) if parse is parse_chat else {}
        body = {**NEEDED[parse], **beside, name: value}
        if name in ANNOTATIONS:
            assert parse(body) == parse(NEEDED[parse]), name
        elif name in HONOURED_IN[parse]:
            assert parse(body) != parse({**NEEDED[parse], **beside}), name
        else:
            with pytest.raises(ApiError) as refusal:
                parse(body)
            assert (refusal.value.status, refusal.value.param) == (400, name)
            assert name in refusal.value.message


DEFAULTS = {
    "best_of": 1,
    "frequency_penalty": 0,
    "functions": [],
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "skip_special_tokens": True,
    "store": False,
    "suffix": "",
}


@pytest.mark.parametrize(("name", "value"), DEFAULTS.items())
def test_a_default_is_no_wish(name: str, value: object) -> None:
    assert parse_chat({**NEEDED[parse_chat], name: value}) == parse_chat(NEEDED[parse_chat])


@pytest.mark.parametrize(
    "field",
    [
        {"include_stop_str_in_output": 1},
        {"continue_final_message": 1},
        {"presence_penalty": False},
        {"best_of": True},
        {"stream_options": {"continuous_usage_stats": True}},
        {"stream_options": {"anything": 1}},
        {"response_format": {"type": "structural_tag"}},
        {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
        {"response_format": {"type": "text", "json_schema": {"schema": {"type": "object"}}}},
        {"store": 0},
        {"user": True},
        {"safety_identifier": 1.5},
        {"metadata": "law"},
        {"prompt_cache_key": 5},
    ],
)
def test_a_value_of_another_kind_is_not_taken_for_the_default(field: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refusal:
        parse_chat(NEEDED[parse_chat] | field)
    assert refusal.value.param in field


@pytest.mark.parametrize("options", [{"include_usage": True, "include_obfuscation": False}, {}])
def test_options_of_a_stream_that_openai_knows_are_taken(options: dict[str, bool]) -> None:
    parse_chat(NEEDED[parse_chat] | {"stream": True, "stream_options": options})
