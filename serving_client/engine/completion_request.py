"""Validation of the bodies of /v1/completions and /v1/chat/completions; unsupported options are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from serving_client.engine.batching.sampling import SamplingParams
from serving_client.engine.errors import ApiError, bad_request, missing_field

# Unsupported field -> its default values, which are accepted.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "tool_choice": (None, "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "use_beam_search": (None, False),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "include_stop_str_in_output": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "add_special_tokens": (None,),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
}
SUPPORTED = {
    "ignore_eos",
    "logit_bias",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "model",
    "prompt",
    "return_token_ids",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "temperature",
    "tools",
    "top_k",
    "top_p",
}
# They say who asks and why, and change no answer; the router adds cache_salt.
ANNOTATIONS = {
    "cache_salt",
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}
KNOWN = SUPPORTED | ANNOTATIONS | UNSUPPORTED.keys()
SHORT_ANSWER = 16
MOST_MESSAGES = 4096
# Each is looked for at every token, by the thread that serves all requests.
MOST_STOPS, LONGEST_STOP, MOST_TOKENS_NAMED = 16, 1000, 1024


@dataclass(frozen=True)
class CompletionRequest:
    """A validated request, as far as it can be checked without the model."""

    model: str | None
    prompt: str | list[int] | None  # text or tokens; None for a chat
    messages: list[dict[str, Any]] | None
    tools: list[dict[str, Any]] | None
    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int]
    ignore_eos: bool
    logit_bias: dict[int, float]
    stream: bool
    include_usage: bool
    return_token_ids: bool

    def characters(self) -> int:
        """Return the characters of the prompt, or of all texts of the messages; 0 for a prompt of tokens."""
        if self.messages is None:
            return len(self.prompt) if isinstance(self.prompt, str) else 0
        texts = (value for message in self.messages for value in message.values())
        return sum(len(text) for text in texts if isinstance(text, str))

    def sampling(self, room: int) -> SamplingParams:
        """Return the sampling parameters; `room` is the number of tokens that fit after the prompt."""
        return SamplingParams(
            max_tokens=room if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            ignore_eos=self.ignore_eos,
            logit_bias=self.logit_bias,
        )


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ApiError 400."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "Bad Request", f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "Bad Request", "The body must be a JSON object.")
    return body


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """Validate a body of /v1/completions. Raises ApiError 400."""
    if "prompt" not in body:
        raise missing_field("prompt", len(body))
    limit = _integer(body, "max_tokens", SHORT_ANSWER, least=1)
    return _parse(body, prompt=_prompt(body["prompt"]), messages=None, max_tokens=limit)


def parse_chat(body: dict[str, Any]) -> CompletionRequest:
    """Validate a body of /v1/chat/completions. Raises ApiError 400."""
    if "messages" not in body:
        raise missing_field("messages", len(body))
    limit = _integer(body, "max_completion_tokens", _integer(body, "max_tokens", None, least=1), least=1)
    return _parse(body, prompt=None, messages=_messages(body["messages"]), max_tokens=limit)


def _parse(
    body: dict[str, Any],
    *,
    prompt: str | list[int] | None,
    messages: list[dict[str, Any]] | None,
    max_tokens: int | None,
) -> CompletionRequest:
    _refuse_unsupported(body)
    return CompletionRequest(
        model=_text(body, "model"),
        prompt=prompt,
        messages=messages,
        tools=_tools(body.get("tools")),
        max_tokens=max_tokens,
        temperature=_number(body, "temperature", 1.0, 0.0, 100.0),
        top_p=_top_p(body),
        top_k=max(0, _integer(body, "top_k", 0, least=-1) or 0),
        seed=_integer(body, "seed", None, least=-(2**63)),
        stop=_stop(body.get("stop")),
        stop_token_ids=frozenset(_few_tokens(body.get("stop_token_ids") or [], "stop_token_ids")),
        ignore_eos=_flag(body, "ignore_eos"),
        logit_bias=_bias(_object(body, "logit_bias")),
        stream=_flag(body, "stream"),
        include_usage=_flag(_object(body, "stream_options"), "include_usage"),
        return_token_ids=_flag(body, "return_token_ids"),
    )


def _refuse_unsupported(body: dict[str, Any]) -> None:
    for field in body:
        if field not in KNOWN:
            raise bad_request(f"The embedded engine does not know '{field[:200]}': leave it out.", field[:200])
    for field, harmless in UNSUPPORTED.items():
        if field in body and body[field] not in harmless:
            raise bad_request(f"The embedded engine does not support '{field}': leave it out.", field)


def _prompt(prompt: object) -> str | list[int]:
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and any(isinstance(item, str | list) for item in prompt):
        raise bad_request("The embedded engine takes one prompt a request: send one request for each.", "prompt")
    return _tokens(prompt, "prompt")


def _tokens(tokens: object, field: str) -> list[int]:
    if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
        raise bad_request(f"'{field}' must be a list of token ids.", field)
    return tokens


def _messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise bad_request("'messages' must be a list with at least one message.", "messages")
    if len(messages) > MOST_MESSAGES:
        raise bad_request(f"'messages' may hold {MOST_MESSAGES} messages.", "messages")
    return [_message(message) for message in messages]


def _message(message: object) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad_request("Each message needs a 'role' and a 'content'.", "messages")
    return {**message, "content": _content(message.get("content")), "tool_calls": _calls(message.get("tool_calls"))}


def _calls(calls: object) -> list[dict[str, Any]]:
    listed = calls or []
    if not isinstance(listed, list) or not all(_is_function(call) for call in listed):
        raise bad_request("Each of 'tool_calls' needs a function with a name and arguments.", "messages")
    return list(listed)


def _tools(tools: object) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    if not isinstance(tools, list) or not all(_is_function(tool) for tool in tools):
        raise bad_request("Each of 'tools' needs a type and a function with a name.", "tools")
    return tools


def _is_function(item: object) -> bool:
    function = item.get("function") if isinstance(item, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _content(content: object) -> str:
    parts = content if isinstance(content, list) else [{"text": content or ""}]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise bad_request("A message's 'content' must be a string.", "messages")
    return "".join(str(text) for text in texts)


def _stop(stop: object) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(item, str) and item for item in stops):
        raise bad_request("'stop' must be a string or a list of strings, none of them empty.", "stop")
    if len(stops) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in stops):
        raise bad_request(f"'stop' may hold {MOST_STOPS} strings of up to {LONGEST_STOP} characters.", "stop")
    return tuple(stops)


def _few_tokens(tokens: object, field: str) -> list[int]:
    listed = _tokens(tokens, field)
    if len(listed) > MOST_TOKENS_NAMED:
        raise bad_request(f"'{field}' may name {MOST_TOKENS_NAMED} tokens.", field)
    return listed


def _bias(wished: dict[str, Any]) -> dict[int, float]:
    if len(wished) > MOST_TOKENS_NAMED:
        raise bad_request(f"'logit_bias' may name {MOST_TOKENS_NAMED} tokens.", "logit_bias")
    if not all(token.isdecimal() and token.isascii() and len(token) < 19 for token in wished):
        raise bad_request("The names in 'logit_bias' must be token ids.", "logit_bias")
    return {int(token): _number(wished, token, 0.0, -100.0, 100.0) for token in wished}


def _top_p(body: dict[str, Any]) -> float:
    top_p = _number(body, "top_p", 1.0, 0.0, 1.0)
    if top_p == 0:
        raise bad_request("top_p must be in (0, 1], got 0.0.", "top_p")
    return top_p


def _number(body: dict[str, Any], field: str, default: float, least: float, most: float) -> float:
    value = body.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise bad_request(f"{field} must be a number from {least} to {most}, got {value!r}.", field)
    return float(value)


def _integer(body: dict[str, Any], field: str, default: int | None, *, least: int) -> int | None:
    value = body.get(field)
    if value is None:
        return default
    if type(value) is not int or not least <= value < 2**63:
        raise bad_request(f"{field} must be an integer of at least {least}, got {value!r}.", field)
    return value


def _text(body: dict[str, Any], field: str) -> str | None:
    value = body.get(field)
    if value is not None and not isinstance(value, str):
        raise bad_request(f"{field} must be a string, got {value!r}.", field)
    return value


def _flag(body: dict[str, Any], field: str) -> bool:
    value = body.get(field)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"{field} must be true or false, got {value!r}.", field)
    return bool(value)


def _object(body: dict[str, Any], field: str) -> dict[str, Any]:
    value = body.get(field) or {}
    if not isinstance(value, dict):
        raise bad_request(f"{field} must be an object, got {value!r}.", field)
    return value
