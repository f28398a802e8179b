"""The bodies of /v1/completions and /v1/chat/completions; unsupported options are refused."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from serving_client.engine.batching.sampling import SamplingParams
from serving_client.engine.errors import ApiError, bad_request, missing_field
from serving_client.engine.field_values import (
    Json,
    Prompt,
    bias_of,
    choice_of,
    few_tokens_of,
    messages_of,
    prompts_of,
    schema_of,
    stops_of,
    tools_of,
)
from serving_client.engine.tool_calls import MOST_CALLS, ToolUse
from serving_client.request_annotations import ANNOTATIONS, wrong_annotation
from serving_client.text_size import characters_in

# Unsupported field -> its default values, which are accepted.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "best_of": (None, 1),
    "suffix": (None, ""),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "structured_outputs": (None,),
    "use_beam_search": (None, False),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "include_stop_str_in_output": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "add_special_tokens": (None,),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
}
SHORT_ANSWER = 16
MOST_ANSWERS, MOST_IN_ALL = 128, 512
# As many as vLLM gives unless told otherwise.
MOST_LOGPROBS = 20
INT64 = 2**63
# A message repeats what was sent.
LONGEST_MESSAGE = 400


class Strict(BaseModel):
    """Base of the parts of a body, validated without conversions: "5" is no number, and 1 is not true."""

    model_config = ConfigDict(frozen=True, strict=True)


class StreamOptions(Strict):
    """The options of a stream; only `include_usage` changes it."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool | None = None
    # Padding against eavesdroppers, which OpenAI adds; and counts in each chunk, which vLLM does.
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class CompletionRequest(Strict):
    """A validated request of /v1/completions, checked as far as possible without the model.

    A field's description completes the error "FIELD must be ...".
    """

    needed: ClassVar[str] = "prompt"
    # Fields of the other endpoint.
    elsewhere: ClassVar[frozenset[str]] = frozenset(
        {"messages", "max_completion_tokens", "parallel_tool_calls", "tool_choice", "tools", "top_logprobs"}
    )

    model: str | None = Field(default=None, description="a text")
    # Texts or tokens; none for a chat. Lists are checked by us: pydantic would note each of a million wrong tokens.
    prompt: Annotated[list[Prompt], PlainValidator(prompts_of)] = []
    messages: Annotated[list[Json] | None, PlainValidator(messages_of)] = None
    tools: Annotated[list[Json] | None, PlainValidator(tools_of)] = None
    max_tokens: int | None = Field(
        default=SHORT_ANSWER, ge=0, lt=INT64, description="an integer of at least 1; with 'echo' it may be 0"
    )
    n: int = Field(default=1, ge=1, le=MOST_ANSWERS, description=f"an integer from 1 to {MOST_ANSWERS}")
    echo: bool = Field(default=False, description="true or false")
    logprobs: int | None = Field(
        default=None, ge=0, le=MOST_LOGPROBS, description=f"an integer from 0 to {MOST_LOGPROBS}"
    )
    prompt_logprobs: int | None = Field(
        default=None, ge=0, le=MOST_LOGPROBS, description=f"an integer from 0 to {MOST_LOGPROBS}"
    )
    temperature: float = Field(default=1.0, ge=0, le=100, description="a number from 0 to 100")
    top_p: float = Field(default=1.0, gt=0, le=1, description="a number in (0, 1]")
    top_k: int = Field(default=0, ge=-1, lt=INT64, description="an integer of at least -1")
    response_format: Annotated[Json | None, PlainValidator(schema_of)] = None
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64, description="an integer of 64 bits")
    stop: Annotated[tuple[str, ...], PlainValidator(stops_of)] = ()
    stop_token_ids: Annotated[list[int], PlainValidator(partial(few_tokens_of, field="stop_token_ids"))] = []
    ignore_eos: bool = Field(default=False, description="true or false")
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(bias_of)] = Field(
        default={}, description="an object of numbers from -100 to 100"
    )
    stream: bool = Field(default=False, description="true or false")
    stream_options: StreamOptions = Field(default=StreamOptions(), description="an object with 'include_usage'")
    return_token_ids: bool = Field(default=False, description="true or false")

    @classmethod
    def read(cls, body: Json) -> Self:
        """Validate a body; a field that is null counts as left out.

        Raises ApiError 400 for the first wrong field, one that is not supported, or fields that contradict each other.
        """
        if body.get(cls.needed) is None:
            raise missing_field(cls.needed, len(body))
        _refuse_unsupported(body, cls.elsewhere)
        try:
            request = cls.model_validate({name: value for name, value in body.items() if value is not None})
            request.require_consistent()
            return request
        except ValidationError as error:
            field = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
        message = f"{field} must be {cls.model_fields[field].description}, got {body[field]!r}."
        raise bad_request(message[:LONGEST_MESSAGE], field)

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer; None for as many as fit into the context."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        """True if the stream ends with the counts of tokens."""
        return bool(self.stream_options.include_usage)

    @property
    def tool_use(self) -> ToolUse | None:
        """None: a completion calls no functions."""
        return None

    @property
    def is_formed(self) -> bool:
        """True if a grammar constrains the answer: a response format, a forced call, or a strict function."""
        use = self.tool_use
        return self.response_format is not None or bool(use and (use.forced or use.is_strict))

    @property
    def alternatives(self) -> int | None:
        """The number of likely tokens to list beside each token of the answer; None for no log-probabilities."""
        return self.logprobs

    @property
    def prompt_alternatives(self) -> int | None:
        """The number of likely tokens to list beside each token of the prompt; None for no log-probabilities.

        If the prompt is echoed, it is by default the number for the answer.
        """
        return self.logprobs if self.echo and self.prompt_logprobs is None else self.prompt_logprobs

    @property
    def is_echo_only(self) -> bool:
        """True if the answer is the prompt alone."""
        return self.echo and self.limit == 0

    def require_consistent(self) -> None:
        """Raise ApiError 400 if fields contradict each other, or if `n` asks for over MOST_IN_ALL answers in all."""
        if self.limit == 0 and not self.echo:
            raise bad_request("max_tokens must be at least 1, but for an 'echo' of the prompt alone.", "max_tokens")
        if self.prompt_logprobs is not None and self.stream:
            raise bad_request("A stream holds no 'prompt_logprobs': leave out one of them.", "prompt_logprobs")
        self.require_stream()
        if self.n * len(self.prompt) > MOST_IN_ALL:
            raise bad_request(f"'n' answers to each prompt may be {MOST_IN_ALL} in all: send more requests.", "n")

    def require_stream(self) -> None:
        """Raise ApiError 400 if `stream_options` is given without `stream`."""
        if "stream_options" in self.model_fields_set and not self.stream:
            raise bad_request("'stream_options' needs 'stream': true.", "stream_options")

    def characters(self) -> int:
        """Return the characters of the longest prompt, or of messages and tools together; 0 for prompts of tokens."""
        if self.messages is None:
            return max((len(prompt) for prompt in self.prompt if isinstance(prompt, str)), default=0)
        return characters_in(self.messages) + characters_in(self.tools, keys=True)

    def sampling(self, room: int, number: int = 0) -> SamplingParams:
        """Return the sampling parameters of one answer to a prompt.

        `room` is the number of tokens that fit after the prompt. `number` counts the answers to a prompt and is added
        to the seed, so that they differ.
        """
        return SamplingParams(
            # The model is asked for a token after an echo, too: nobody sees it.
            max_tokens=room if self.limit is None else max(1, self.limit),
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            seed=None if self.seed is None else (self.seed + number + INT64) % (2 * INT64) - INT64,
            stop=self.stop,
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            logit_bias=self.logit_bias,
            logprobs=self.alternatives,
            prompt_logprobs=self.prompt_alternatives,
        )


class ChatRequest(CompletionRequest):
    """A validated request of /v1/chat/completions."""

    needed = "messages"
    elsewhere = frozenset({"prompt", "echo"})

    tool_choice: Annotated[str | None, PlainValidator(choice_of)] = None
    parallel_tool_calls: bool = Field(default=True, description="true or false")
    max_tokens: int | None = Field(default=None, ge=1, lt=INT64, description="an integer of at least 1")
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=INT64, description="an integer of at least 1")
    logprobs: bool = Field(default=False, description="true or false")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MOST_LOGPROBS, description=f"an integer from 0 to {MOST_LOGPROBS}"
    )

    @property
    def alternatives(self) -> int | None:
        """The number of likely tokens to list beside each token of the answer; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def prompt_alternatives(self) -> int | None:
        """The number of likely tokens to list beside each token of the prompt; None for no log-probabilities."""
        return self.prompt_logprobs

    @property
    def tool_use(self) -> ToolUse | None:
        """The functions that may be called; None without tools, or if tool_choice is none."""
        if not self.tools or self.tool_choice == "none":
            return None
        functions = {tool["function"]["name"]: tool["function"] for tool in self.tools}
        forced = None if self.tool_choice == "auto" else self.tool_choice
        return ToolUse(functions, forced, MOST_CALLS if self.parallel_tool_calls else 1)

    def require_consistent(self) -> None:
        """Raise ApiError 400 if fields contradict each other, such as a `tool_choice` that is none of `tools`."""
        names = [tool["function"]["name"] for tool in self.tools or ()]
        if self.tool_choice not in (None, "none", "auto", "required", *names):
            raise bad_request(
                f"'tool_choice' names {str(self.tool_choice)[:200]!r}, which is none of 'tools'.", "tool_choice"
            )
        if self.tool_choice == "required" and not names:
            raise bad_request("'tool_choice' needs 'tools'.", "tool_choice")
        if self.response_format is not None and self.tool_use:
            message = "The embedded engine can give an answer one form only: leave out 'response_format' or 'tools'."
            raise bad_request(message, "response_format")
        self.require_stream()
        if self.top_logprobs and not self.logprobs:
            raise bad_request("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
        if self.prompt_logprobs is not None and self.stream:
            raise bad_request("A stream holds no 'prompt_logprobs': leave out one of them.", "prompt_logprobs")

    @property
    def limit(self) -> int | None:
        """The most tokens of the answer: `max_completion_tokens`, else `max_tokens`; None for all that fit."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


# The router adds cache_salt.
KNOWN = ChatRequest.model_fields.keys() | ANNOTATIONS | {"cache_salt"} | UNSUPPORTED.keys()


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object. Raises ApiError 400 for any other."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, "Bad Request", f"The body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "Bad Request", "The body must be a JSON object.")
    return body


def parse_completion(body: Json) -> CompletionRequest:
    """Return the validated request of /v1/completions. Raises ApiError 400 for what is wrong or not supported."""
    return CompletionRequest.read(body)


def parse_chat(body: Json) -> ChatRequest:
    """Return the validated request of /v1/chat/completions. Raises ApiError 400 for what is wrong or not supported."""
    return ChatRequest.read(body)


def _refuse_unsupported(body: Json, elsewhere: frozenset[str]) -> None:
    for field in body:
        if field not in KNOWN or field in elsewhere:
            raise bad_request(f"The embedded engine does not know '{field[:200]}': leave it out.", field[:200])
    if wrong := wrong_annotation(body):
        raise bad_request(wrong.message, wrong.field)
    for field, harmless in UNSUPPORTED.items():
        if field in body and not any(_is_same(body[field], default) for default in harmless):
            raise bad_request(f"The embedded engine does not support '{field}': leave it out.", field)


def _is_same(value: object, default: object) -> bool:
    """Return True for the same value: Python takes 0 for False."""
    return value == default and isinstance(value, bool) == isinstance(default, bool)
