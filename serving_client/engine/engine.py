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
from serving_client.engine.batching.loop import GenerationLoop
from serving_client.engine.batching.sequence import Delta, Sequence
from serving_client.engine.chat_prompt import ChatRefused, chat_prompt
from serving_client.engine.completion_request import CompletionRequest
from serving_client.engine.errors import bad_request, internal, not_found
from serving_client.engine.model import BaseModel

# A text of this size is cut into tokens faster than a thread is asked to; a longer one would hold all requests up.
AT_ONCE_CHARACTERS = 2048


@dataclass(frozen=True)
class Limits:
    """Limits on adapters in the batch and in memory, LoRA rank, batch size and CPU threads."""

    max_loras: int = 8
    max_cpu_loras: int = 32
    max_lora_rank: int = 64
    max_batch: int = 32
    threads: int | None = None


class Answer:
    """One request in the engine. Iterate over its deltas; call `cancel` when no client waits for it."""

    def __init__(self, model: str, prompt: list[int]) -> None:
        self.model = model
        self.prompt = prompt
        self.sequence: Sequence | None = None
        self._deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def tell(self, delta: Delta) -> None:
        """Pass a delta from the engine's thread to the event loop; dropped if the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deltas.put_nowait, delta)

    def cancel(self) -> None:
        """Make the engine drop the request."""
        if self.sequence:
            self.sequence.cancel()

    async def deltas(self) -> AsyncIterator[Delta]:
        """Yield all deltas; the last has a finish reason. Raises ApiError 500 if the engine failed."""
        while True:
            delta = await self._deltas.get()
            if delta.failure:
                raise internal(delta.failure)
            yield delta
            if delta.is_last:
                return


class Engine:
    """A base model, its adapters and the thread that runs them."""

    def __init__(self, name: str, base: BaseModel, limits: Limits) -> None:
        self.name = name
        self.base = base
        self.limits = limits
        self.batch = RunningBatch(base.model, max_loras=limits.max_loras, ends=base.ends)
        self.loop = GenerationLoop(self.batch, max_batch=limits.max_batch, threads=limits.threads)
        self.adapters = AdapterPool(name, self._read_adapter, max_in_memory=limits.max_cpu_loras)

    async def begin(self, request: CompletionRequest) -> Answer:
        """Queue a request and return its answer, whose tokens come as they are computed.

        Raises ApiError 404 for an unknown model, 400 for a request that does not fit.
        """
        name = request.model or self.name
        characters = self._require_size(request)
        adapter = await self._adapter(name)
        if characters <= AT_ONCE_CHARACTERS and not request.tools:
            prompt = self._prompt_tokens(request)
        else:
            prompt = await run_in_threadpool(self._prompt_tokens, request)
        answer = Answer(name, prompt)
        self._known_tokens([*request.logit_bias], "logit_bias")
        sampling = request.sampling(self._room(request, len(prompt)))
        answer.sequence = Sequence(prompt, sampling, adapter, self.base.tokenizer.backend_tokenizer, answer.tell)
        self.loop.submit(answer.sequence)
        return answer

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
        if isinstance(request.prompt, list) and len(request.prompt) > limit:
            raise bad_request(_too_long(limit, request.limit or 1, len(request.prompt)), "input_tokens")
        characters = request.characters()
        if characters > self.base.most_characters or len(request.messages or ()) > limit:
            raise bad_request(
                f"This model's maximum context length is {limit} tokens, and {characters} characters are more than "
                "they can hold. Please reduce the length of the input prompt.",
                "input_tokens",
            )
        return characters

    def _prompt_tokens(self, request: CompletionRequest) -> list[int]:
        prompt = request.prompt
        if request.messages is not None:
            prompt = self._chat_prompt(request.messages, request.tools)
        if isinstance(prompt, str):
            tokens: list[int] = self.base.tokenizer.encode(prompt, add_special_tokens=request.messages is None)
            return tokens
        return self._known_tokens(prompt or [])

    def _chat_prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        if not self.base.tokenizer.chat_template:
            raise bad_request("The base model has no chat template: use /v1/completions.")
        try:
            return chat_prompt(self.base.tokenizer, messages, tools)
        except ChatRefused as error:
            raise bad_request(str(error), error.field) from error

    def _known_tokens(self, tokens: list[int], field: str = "prompt") -> list[int]:
        vocabulary: int = self.base.model.config.get_text_config().vocab_size
        if any(token >= vocabulary for token in tokens):
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
