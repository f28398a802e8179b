"""Engine interface for the web application: adapters by name, and answers as streams of deltas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from serving_client.engine.adapters.adapter import Adapter, read_adapter
from serving_client.engine.adapters.pool import AdapterPool
from serving_client.engine.batching.batch import RunningBatch
from serving_client.engine.batching.grammar import BadGrammar, Grammar, Grammars
from serving_client.engine.batching.loop import GenerationLoop
from serving_client.engine.batching.sequence import Delta, Sequence
from serving_client.engine.chat_prompt import ChatRefused, chat_prompt
from serving_client.engine.completion_request import CompletionRequest
from serving_client.engine.errors import bad_request, internal, not_found
from serving_client.engine.model import BaseModel
from serving_client.engine.tool_calls import CLOSES, OPENS

# A text of this size is cut into tokens faster than a thread is asked to; a longer one would hold all requests up.
AT_ONCE_CHARACTERS = 2048


@dataclass(frozen=True)
class Limits:
    """Limits of the engine.

    `max_loras` is the number of different adapters in one batch, `max_cpu_loras` that of the adapters kept in memory,
    and `max_batch` that of the requests that run at once. `threads` are the CPU threads, None for PyTorch's choice.
    """

    max_loras: int = 8
    max_cpu_loras: int = 32
    max_lora_rank: int = 64
    max_batch: int = 32
    threads: int | None = None


class Answer:
    """One request in the engine: `count` answers to each of its prompts, those to the first prompt first.

    Iterate over `deltas`; call `cancel` when no client waits for it.
    """

    def __init__(self, model: str, prompts: list[list[int]], count: int = 1) -> None:
        self.model = model
        self.prompts = prompts
        self.count = count
        self.sequences: list[Sequence] = []
        self._deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def tell(self, delta: Delta) -> None:
        """Pass a delta from the engine's thread to the event loop; drop it if the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deltas.put_nowait, delta)

    def cancel(self) -> None:
        """Mark every sequence of the request as cancelled; the engine drops them before its next step."""
        for sequence in self.sequences:
            sequence.cancel()

    async def deltas(self) -> AsyncIterator[Delta]:
        """Yield the deltas of all answers as they come; the last of each has a finish reason.

        Raises ApiError 500 if the engine failed.
        """
        unfinished = len(self.prompts) * self.count
        while unfinished:
            delta = await self._deltas.get()
            if delta.failure:
                raise internal(delta.failure)
            yield delta
            unfinished -= delta.is_last


class Engine:
    """A base model, its adapters and the thread that runs them."""

    def __init__(self, name: str, base: BaseModel, limits: Limits) -> None:
        self.name = name
        self.base = base
        self.limits = limits
        self.batch = RunningBatch(base.model, max_loras=limits.max_loras, ends=base.ends)
        self.loop = GenerationLoop(self.batch, max_batch=limits.max_batch, threads=limits.threads)
        self._grammars = Grammars(base.tokenizer, self._vocabulary, base.ends)
        self.adapters = AdapterPool(name, self._read_adapter, max_in_memory=limits.max_cpu_loras)

    @property
    def _vocabulary(self) -> int:
        size: int = self.base.model.config.get_text_config().vocab_size
        return size

    async def begin(self, request: CompletionRequest) -> Answer:
        """Queue a request and return its answer, whose tokens come as they are computed.

        Raises ApiError: 404 for an unknown model; 400 for a request that exceeds the context or asks for what the model
        cannot do; 500 if the adapter's folder cannot be read any more.
        """
        name = request.model or self.name
        characters = self._require_size(request)
        adapter = await self._adapter(name)
        if characters <= AT_ONCE_CHARACTERS and len(request.prompt) < 2 and not request.tools:
            prompts = self._prompt_tokens(request)
        else:
            prompts = await run_in_threadpool(self._prompt_tokens, request)
        self._known_tokens([*request.logit_bias], "logit_bias")
        rooms = [self._room(request, len(prompt)) for prompt in prompts]
        answer = Answer(name, prompts, request.n)
        grammar = await run_in_threadpool(self._grammar, request) if request.is_formed else None
        decoder = self.base.tokenizer.backend_tokenizer
        for index in range(len(prompts) * request.n):
            place, number = divmod(index, request.n)
            sampling = request.sampling(rooms[place], number)
            own = grammar.copy() if grammar else None
            answer.sequences.append(Sequence(prompts[place], sampling, adapter, decoder, answer.tell, index, own))
        for sequence in answer.sequences:
            self.loop.submit(sequence)
        return answer

    def _grammar(self, request: CompletionRequest) -> Grammar | None:
        """Compile what holds the answer to its form. Raises ApiError 400."""
        use = request.tool_use
        try:
            if use and use.is_strict:
                if OPENS not in str(self.base.tokenizer.get_chat_template(tools=request.tools)):
                    raise BadGrammar(f"'strict' needs a forced call: the chat template does not know {OPENS}")
                return self._grammars.of_calls(OPENS, use.openings(), f"}}\n{CLOSES}")
            schema = use.schema() if use and use.forced else request.response_format
            return self._grammars.of_schema(schema) if schema is not None else None
        except ValueError as error:
            field = "tools" if use and (use.forced or use.is_strict) else "response_format"
            raise bad_request(f"'{field}' cannot be honoured: {error}.", field) from error

    def _read_adapter(self, name: str, folder: Path) -> Adapter:
        return read_adapter(
            name,
            folder,
            self.batch.module_shapes,
            max_rank=self.limits.max_lora_rank,
            dtype=self.base.model.dtype,
            is_pinned=self.base.model.device.type == "cuda",
        )

    async def _adapter(self, name: str) -> Adapter | None:
        if name == self.name:
            return None
        try:
            return await run_in_threadpool(self.adapters.get, name)
        except KeyError as error:
            message = f"The model `{name}` does not exist. Valid aliases: {self.name}."
            raise not_found(message, "model") from error

    def _require_size(self, request: CompletionRequest) -> int:
        """Return the prompt's characters. Raises ApiError 400 for a prompt that cannot fit, before it is tokenised."""
        limit = self.base.max_length
        longest = max((len(prompt) for prompt in request.prompt if isinstance(prompt, list)), default=0)
        if longest > limit:
            raise bad_request(_too_long(limit, request.limit or 1, longest), "input_tokens")
        characters = request.characters()
        if characters > self.base.most_characters or len(request.messages or ()) > limit:
            raise bad_request(
                f"This model's maximum context length is {limit} tokens, and {characters} characters are more than "
                "they can hold. Please reduce the length of the input prompt.",
                "input_tokens",
            )
        return characters

    def _prompt_tokens(self, request: CompletionRequest) -> list[list[int]]:
        if request.messages is not None:
            prompt = self._chat_prompt(request.messages, request.tools if request.tool_use else None)
            return [self.base.tokenizer.encode(prompt, add_special_tokens=False)]
        return [
            self.base.tokenizer.encode(prompt) if isinstance(prompt, str) else self._known_tokens(prompt)
            for prompt in request.prompt
        ]

    def texts_of(self, prompts: list[str | list[int]]) -> list[str]:
        """Return the prompts as texts; those of token ids are decoded."""
        return [prompt if isinstance(prompt, str) else str(self.base.tokenizer.decode(prompt)) for prompt in prompts]

    def _chat_prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        if not self.base.tokenizer.chat_template:
            raise bad_request("The base model has no chat template: use /v1/completions.")
        try:
            return chat_prompt(self.base.tokenizer, messages, tools)
        except ChatRefused as error:
            raise bad_request(str(error), error.field) from error

    def _known_tokens(self, tokens: list[int], field: str = "prompt") -> list[int]:
        if any(token >= self._vocabulary for token in tokens):
            raise bad_request(f"Token id {max(tokens)} is out of vocabulary.", field)
        return tokens

    def _room(self, request: CompletionRequest, prompt: int) -> int:
        if not prompt:
            raise bad_request("The prompt must have at least one token.", "prompt")
        wanted = request.limit or 1
        if prompt + wanted > self.base.max_length:
            raise bad_request(_too_long(self.base.max_length, wanted, prompt), "input_tokens")
        return self.base.max_length - prompt


def _too_long(limit: int, wanted: int, prompt: int) -> str:
    return (
        f"This model's maximum context length is {limit} tokens. However, you requested {wanted} output tokens "
        f"and your prompt contains at least {prompt} input tokens, for a total of at least {prompt + wanted} tokens. "
        "Please reduce the length of the input prompt or the number of requested output tokens."
    )
