"""JSON bodies of completions and chat completions, field by field as vLLM writes them."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from serving_client.engine.batching.sequence import Delta

VERSION = version("adapterhub")
FINGERPRINT = f"adapterhub-{VERSION}"
Json = dict[str, Any]


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Return the `usage` object with token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def joined(deltas: list[Delta]) -> Delta:
    """Join the deltas of an answer to one."""
    text = "".join(delta.text for delta in deltas)
    tokens = tuple(token for delta in deltas for token in delta.token_ids)
    return Delta(text, tokens, deltas[-1].finish_reason, deltas[-1].stop_reason)


@dataclass(frozen=True)
class Format(ABC):
    """Base of the response formats: the fields common to all parts of one answer."""

    model: str
    prompt: list[int]
    return_token_ids: bool
    id: str
    created: int = field(default_factory=lambda: int(time.time()))

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _tokens(self, delta: Delta) -> list[int] | None:
        return list(delta.token_ids) if self.return_token_ids else None

    def _prompt(self) -> list[int] | None:
        return self.prompt if self.return_token_ids else None

    def _end(self, delta: Delta) -> Json:
        return {"logprobs": None, "finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}

    def _whole(self, kind: str, choice: Json, delta: Delta) -> Json:
        return {
            **self._head(kind),
            "choices": [choice],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": usage(len(self.prompt), len(delta.token_ids)),
            "kv_transfer_params": None,
        }

    @abstractmethod
    def whole(self, delta: Delta) -> Json:
        """Return the body of an answer that is not streamed."""

    @abstractmethod
    def chunks(self, delta: Delta, *, is_first: bool) -> list[Json]:
        """Return the server-sent events of one delta."""

    @abstractmethod
    def usage_chunk(self, completion_tokens: int) -> Json:
        """Return the last event, for stream_options.include_usage."""


class CompletionFormat(Format):
    """Response format of /v1/completions."""

    def whole(self, delta: Delta) -> Json:
        """Return the whole completion."""
        choice = {
            "index": 0,
            "text": delta.text,
            **self._end(delta),
            "token_ids": self._tokens(delta),
            "prompt_logprobs": None,
            "prompt_token_ids": self._prompt(),
        }
        return self._whole("text_completion", choice, delta)

    def chunks(self, delta: Delta, *, is_first: bool) -> list[Json]:
        """Return the chunks of a streamed part."""
        choice = {
            "index": 0,
            "text": delta.text,
            **self._end(delta),
            "prompt_token_ids": self._prompt() if is_first else None,
            "token_ids": self._tokens(delta),
        }
        return [{**self._head("text_completion"), "choices": [choice]}]

    def usage_chunk(self, completion_tokens: int) -> Json:
        """Return the last chunk, with the counts of tokens."""
        return {**self._head("text_completion"), "choices": [], "usage": usage(len(self.prompt), completion_tokens)}


class ChatFormat(Format):
    """Response format of /v1/chat/completions."""

    def whole(self, delta: Delta) -> Json:
        """Return the whole chat completion."""
        message: Json = {"role": "assistant", "content": delta.text, "refusal": None, "tool_calls": []}
        choice = {"index": 0, "message": message, **self._end(delta), "token_ids": self._tokens(delta)}
        extra = {"prompt_logprobs": None, "prompt_token_ids": self._prompt()}
        return {**self._whole("chat.completion", choice, delta), **extra}

    def chunks(self, delta: Delta, *, is_first: bool) -> list[Json]:
        """Return the chunks of a streamed part; the first one opens the message."""
        part = {"index": 0, "delta": {"content": delta.text}, **self._end(delta), "token_ids": self._tokens(delta)}
        chunk = {**self._head("chat.completion.chunk"), "choices": [part]}
        return [self._opening(), chunk] if is_first else [chunk]

    def _opening(self) -> Json:
        part = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return {**self._head("chat.completion.chunk"), "choices": [part], "prompt_token_ids": self._prompt()}

    def usage_chunk(self, completion_tokens: int) -> Json:
        """Return the last chunk, with the counts of tokens."""
        counts = usage(len(self.prompt), completion_tokens)
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": counts}


def new_id(prefix: str) -> str:
    """Create an id in vLLM's form."""
    return f"{prefix}-{uuid.uuid4().hex[:16]}"
