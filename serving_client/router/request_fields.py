"""Fields of a request that may reach an engine, by name: what OpenAI's clients send, and harmless ways to sample.

Engines take many more: some name a place in the queue, a path or code, and some read another tenant's cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serving_client.regex import unfolded
from serving_client.request_annotations import ANNOTATIONS, wrong_annotation
from serving_client.router.errors import Refusal
from serving_client.text_size import characters_in

COMPLETIONS, CHAT, EMBEDDINGS = "/v1/completions", "/v1/chat/completions", "/v1/embeddings"
RESPONSES = "/v1/responses"
SAMPLING = {
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "min_tokens",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "seed",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "stop",
    "stop_token_ids",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
}
# What a provider does beside the answer -> the values that ask for nothing.
SERVICE: Mapping[str, tuple[object, ...]] = {"service_tier": (None, "auto", "default"), "store": (None, False)}
ALLOWED: Mapping[str, set[str]] = {
    COMPLETIONS: {
        "model",
        *ANNOTATIONS,
        *SERVICE,
        *SAMPLING,
        "add_special_tokens",
        "best_of",
        "echo",
        "prompt",
        "response_format",
        "suffix",
    },
    CHAT: {
        "model",
        *ANNOTATIONS,
        *SERVICE,
        *SAMPLING,
        "add_generation_prompt",
        "audio",
        "continue_final_message",
        "function_call",
        "functions",
        "max_completion_tokens",
        "messages",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "reasoning_effort",
        "response_format",
        "tool_choice",
        "tools",
        "top_logprobs",
        "verbosity",
        "web_search_options",
    },
    EMBEDDINGS: {"model", *ANNOTATIONS, *SERVICE, "dimensions", "encoding_format", "input"},
    RESPONSES: {
        "model",
        *ANNOTATIONS,
        *SERVICE,
        "include",
        "input",
        "instructions",
        "logit_bias",
        "max_output_tokens",
        "max_tool_calls",
        "parallel_tool_calls",
        "reasoning",
        "repetition_penalty",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_k",
        "top_logprobs",
        "top_p",
        "truncation",
    },
}
# Fields of a conversation that an engine keeps: the next request may reach another one.
OF_STATE = {"background", "conversation", "previous_response_id"}
MAX_ANSWERS, MAX_PROMPTS, MAX_INPUTS, MAX_PARTS = 8, 64, 2048, 4096
# An engine looks for each at every token, between the steps of all requests.
MAX_STOPS, LONGEST_STOP, MAX_TOKENS_NAMED = 16, 1000, 1024
# Engines build a machine from a schema's patterns, of about as many states as the pattern unfolds to.
MAX_UNFOLDED, MAX_SCHEMA_VALUES = 20_000, 20_000
WITH_SCHEMAS = ("response_format", "tools", "functions", "text")
# Fields whose texts become part of the prompt.
AROUND_PROMPT = ("functions", "instructions", "suffix", "tools")
ADDRESSES = ("image_url", "video_url", "audio_url", "file_url")

Body = dict[str, Any]


def require_allowed(path: str, body: Body) -> None:
    """Raise Refusal 400 for a field that callers may not send, and for one that would hold an engine up by its size."""
    if path == RESPONSES:
        require_stateless(body)
    for name in body:
        if name not in ALLOWED[path]:
            raise Refusal(400, "field_not_allowed", f"{name[:200]} is not allowed: remove it.", param=name[:200])
    if wrong := wrong_annotation(body):
        raise Refusal(400, "bad_value", wrong.message, param=wrong.field)
    require_no_service(body)
    require_few(body)
    require_short(body)
    messages = conversation_of(body)
    require_few_parts(messages)
    for message in messages:
        require_inline(message)
    for field in WITH_SCHEMAS:
        require_small_patterns(field, body.get(field))


def require_stateless(body: Body) -> None:
    """Raise Refusal 400 if a body of /v1/responses needs a stored conversation, or has tools other than functions."""
    for name in OF_STATE & body.keys():
        if body[name]:
            message = f"{name} is not allowed: no engine keeps conversations, so send the whole input."
            raise Refusal(400, "field_not_allowed", message, param=name)
    if any(not isinstance(tool, dict) or tool.get("type") != "function" for tool in listed(body.get("tools"))):
        message = "tools may only be functions: engines run no tools themselves."
        raise Refusal(400, "tool_not_allowed", message, param="tools")


def require_no_service(body: Body) -> None:
    """Raise Refusal 400 if `store` or `service_tier` asks for something: no engine stores answers or has paid tiers."""
    for name, harmless in SERVICE.items():
        if body.get(name) not in harmless:
            least = " or ".join(str(value).lower() for value in harmless[1:])
            message = f"{name} must be {least}, or left out: no engine does more."
            raise Refusal(400, "field_not_allowed", message, param=name)


def conversation_of(body: Body) -> list[Any]:
    """Return the messages of a chat, or the objects in a response's input; else an empty list."""
    return listed(body.get("messages")) or [item for item in listed(body.get("input")) if isinstance(item, dict)]


def require_few(body: Body) -> None:
    """Raise Refusal 400 if one request asks for too many choices, or has too many prompts or inputs."""
    for name in ("n", "best_of"):
        answers = body.get(name)
        if answers is not None and not (isinstance(answers, int) and 1 <= answers <= MAX_ANSWERS):
            raise Refusal(400, "bad_n", f"{name} must be between 1 and {MAX_ANSWERS}.", param=name)
    for name, most in (("prompt", MAX_PROMPTS), ("input", MAX_INPUTS)):
        given = listed(body.get(name))
        if len(given) > most and isinstance(given[0], str | list):
            message = f"{name} may have at most {most} texts: send several requests."
            raise Refusal(400, "too_many_prompts", message, param=name)


def require_short(body: Body) -> None:
    """Raise Refusal 400 if `stop` has too many or too long texts, or another field names too many tokens.

    The other fields are `stop_token_ids` and `logit_bias`.
    """
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else listed(stop)
    if len(stops) > MAX_STOPS or any(isinstance(stop, str) and len(stop) > LONGEST_STOP for stop in stops):
        message = f"stop may have at most {MAX_STOPS} texts of up to {LONGEST_STOP} characters."
        raise Refusal(400, "bad_stop", message, param="stop")
    for name in ("stop_token_ids", "logit_bias"):
        tokens = body.get(name)
        if isinstance(tokens, list | dict) and len(tokens) > MAX_TOKENS_NAMED:
            raise Refusal(400, "too_many_tokens", f"{name} may name at most {MAX_TOKENS_NAMED} tokens.", param=name)


def require_few_parts(messages: list[Any]) -> None:
    """Raise Refusal 400 if there are over MAX_PARTS messages, or over MAX_PARTS parts in all of them."""
    is_few = len(messages) <= MAX_PARTS
    if not is_few or sum(len(parts_of(message)) for message in messages) > MAX_PARTS:
        message = f"messages may have at most {MAX_PARTS} messages, and as many parts in all."
        raise Refusal(400, "too_many_messages", message, param="messages")


def parts_of(message: Any) -> list[Any]:
    """Return the parts of a message's content and of a tool's output, where these are lists."""
    if not isinstance(message, dict):
        return []
    return [part for name in ("content", "output") for part in listed(message.get(name))]


def require_inline(message: Any) -> None:
    """Check that images and files are sent inline, as a data: URL. Raises Refusal 400 for another address.

    The engine would fetch it, from inside the network.
    """
    for part in [message, *parts_of(message)]:
        for name in ADDRESSES if isinstance(part, dict) else ():
            place = part.get(name)
            address = place.get("url") if isinstance(place, dict) else place
            if address is not None and not (isinstance(address, str) and address.startswith("data:")):
                message = "A message's image must come inline, as a data: URL."
                raise Refusal(400, "address_not_allowed", message, param=name)


def require_small_patterns(field: str, value: Any) -> None:
    """Raise Refusal 400 if the patterns of the schemas in `value` are too large, or if it holds too many values.

    Their sizes, with repetitions written out, may be MAX_UNFOLDED in all. `field` is the name that the refusal tells.
    """
    size = 0
    for pattern in patterns_in(field, value):
        size += len(pattern)
        size += unfolded(pattern) if size <= MAX_UNFOLDED else 0
        if size > MAX_UNFOLDED:
            message = f"{field}: its patterns unfold too far: use smaller repetitions."
            raise Refusal(400, "bad_pattern", message, param=field)


def patterns_in(field: str, value: Any) -> Iterator[str]:
    """Yield the regular expressions of the JSON Schemas in `value`, at any depth.

    Raises Refusal 400, which names `field`, if it holds over MAX_SCHEMA_VALUES values.
    """
    waiting, count = [value], 0
    while waiting:
        count += 1
        if count > MAX_SCHEMA_VALUES:
            message = f"{field} may have at most {MAX_SCHEMA_VALUES} values."
            raise Refusal(400, "schema_too_large", message, param=field)
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(pattern := part.get("pattern"), str):
                yield pattern
            if isinstance(named := part.get("patternProperties"), dict):
                yield from named
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part[: MAX_SCHEMA_VALUES + 1]


def require_fitting(body: Body, most_characters: int | None) -> None:
    """Check that the text can fit into the context.

    Raises Refusal 400 for one over `most_characters`; None is no bound.
    """
    size = size_of(body)
    if most_characters is not None and size > most_characters:
        message = f"The text has {size} characters; the context of this model holds no more than {most_characters}."
        raise Refusal(400, "context_length_exceeded", message)


def size_of(body: Body) -> int:
    """Return the characters of a conversation, or of the longest text of a prompt or input, with what stands around it.

    Engines write tools, instructions and calls of tools into the prompt.
    """
    around = sum(characters_in(body.get(name), keys=True) for name in AROUND_PROMPT)
    if conversation := conversation_of(body):
        return around + characters_in(conversation)
    given = body.get("prompt", body.get("input"))
    texts = [text for text in [given, *listed(given)] if isinstance(text, str)]
    return around + max(map(len, texts), default=0)


def listed(value: Any) -> list[Any]:
    """Return a list as it is, and an empty one for anything else."""
    return value if isinstance(value, list) else []
