"""The bodies of /v1/completions and /v1/chat/completions; unsupported options are refused."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Self

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

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
SHORT_ANSWER = 16
MOST_MESSAGES = 4096
# Each is looked for at every token, by the thread that serves all requests.
MOST_STOPS, LONGEST_STOP, MOST_TOKENS_NAMED = 16, 1000, 1024
INT64 = 2**63
# A message repeats what was sent.
LONGEST_MESSAGE = 400
Json = dict[str, Any]


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


def _few_tokens(tokens: object, field: str) -> list[int]:
    listed = _tokens(tokens, field)
    if len(listed) > MOST_TOKENS_NAMED:
        raise bad_request(f"'{field}' may name {MOST_TOKENS_NAMED} tokens.", field)
    return listed


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


def _bias(wished: object) -> dict[int, Any]:
    if not isinstance(wished, dict):
        raise bad_request("'logit_bias' must be an object of token ids.", "logit_bias")
    if len(wished) > MOST_TOKENS_NAMED:
        raise bad_request(f"'logit_bias' may name {MOST_TOKENS_NAMED} tokens.", "logit_bias")
    if not all(token.isdecimal() and token.isascii() and len(token) < 19 for token in wished):
        raise bad_request("The names in 'logit_bias' must be token ids.", "logit_bias")
    return {int(token): number for token, number in wished.items()}


class Strict(BaseModel):
    """A part of a body: a text is no number, and a number no truth value."""

    model_config = ConfigDict(frozen=True, strict=True)


class StreamOptions(Strict):
    """Options of a streamed answer, as OpenAI's `stream_options`."""

    include_usage: bool | None = None


class CompletionRequest(Strict):
    """A validated request, as far as it can be checked without the model. Descriptions complete "FIELD must be ..."."""

    needed: ClassVar[str] = "prompt"
    # Fields of the other endpoint.
    elsewhere: ClassVar[frozenset[str]] = frozenset({"messages", "max_completion_tokens"})

    model: str | None = Field(default=None, description="a text")
    # Text or tokens; None for a chat. Lists are checked by us: pydantic would note each of a million wrong tokens.
    prompt: Annotated[str | list[int] | None, PlainValidator(_prompt)] = None
    messages: Annotated[list[Json] | None, PlainValidator(_messages)] = None
    tools: Annotated[list[Json] | None, PlainValidator(_tools)] = None
    max_tokens: int | None = Field(default=SHORT_ANSWER, ge=1, lt=INT64, description="an integer of at least 1")
    temperature: float = Field(default=1.0, ge=0, le=100, description="a number from 0 to 100")
    top_p: float = Field(default=1.0, gt=0, le=1, description="a number in (0, 1]")
    top_k: int = Field(default=0, ge=-1, lt=INT64, description="an integer of at least -1")
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64, description="an integer of 64 bits")
    stop: Annotated[tuple[str, ...], PlainValidator(_stop)] = ()
    stop_token_ids: Annotated[list[int], PlainValidator(partial(_few_tokens, field="stop_token_ids"))] = []
    ignore_eos: bool = Field(default=False, description="true or false")
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(_bias)] = Field(
        default={}, description="an object of numbers from -100 to 100"
    )
    stream: bool = Field(default=False, description="true or false")
    stream_options: StreamOptions = Field(default=StreamOptions(), description="an object with true or false")
    return_token_ids: bool = Field(default=False, description="true or false")

    @classmethod
    def read(cls, body: Json) -> Self:
        """Validate a body, in which null is as good as left out. Raises ApiError 400 for the first wrong field."""
        if body.get(cls.needed) is None:
            raise missing_field(cls.needed, len(body))
        _refuse_unsupported(body, cls.elsewhere)
        try:
            return cls.model_validate({name: value for name, value in body.items() if value is not None})
        except ValidationError as error:
            field = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
        message = f"{field} must be {cls.model_fields[field].description}, got {body[field]!r}."
        raise bad_request(message[:LONGEST_MESSAGE], field)

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer; None for as many as there is room for."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """True if the stream ends with the counts of tokens."""
        return bool(self.stream_options.include_usage)

    def characters(self) -> int:
        """Return the characters of the prompt, or of all texts of the messages; 0 for a prompt of tokens."""
        if self.messages is None:
            return len(self.prompt) if isinstance(self.prompt, str) else 0
        texts = (value for message in self.messages for value in message.values())
        return sum(len(text) for text in texts if isinstance(text, str))

    def sampling(self, room: int) -> SamplingParams:
        """Return the sampling parameters; `room` is the number of tokens that fit after the prompt."""
        return SamplingParams(
            max_tokens=room if self.limit is None else self.limit,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logit_bias=self.logit_bias,
        )


class ChatRequest(CompletionRequest):
    """A validated request of a chat."""

    needed = "messages"
    elsewhere = frozenset({"prompt"})

    max_tokens: int | None = Field(default=None, ge=1, lt=INT64, description="an integer of at least 1")
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=INT64, description="an integer of at least 1")

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer: `max_completion_tokens`, else `max_tokens`; None leaves it to the context."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


KNOWN = ChatRequest.model_fields.keys() | ANNOTATIONS | UNSUPPORTED.keys()


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ApiError 400."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "Bad Request", f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "Bad Request", "The body must be a JSON object.")
    return body


def parse_completion(body: Json) -> CompletionRequest:
    """Validate a body of /v1/completions. Raises ApiError 400."""
    return CompletionRequest.read(body)


def parse_chat(body: Json) -> ChatRequest:
    """Validate a body of /v1/chat/completions. Raises ApiError 400."""
    return ChatRequest.read(body)


def _refuse_unsupported(body: Json, elsewhere: frozenset[str]) -> None:
    for field in body:
        if field not in KNOWN or field in elsewhere:
            raise bad_request(f"The embedded engine does not know '{field[:200]}': leave it out.", field[:200])
    for field, harmless in UNSUPPORTED.items():
        if field in body and body[field] not in harmless:
            raise bad_request(f"The embedded engine does not support '{field}': leave it out.", field)
