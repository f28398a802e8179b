"""JSON bodies of completions and chat completions, field by field as vLLM writes them."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

from serving_client.engine.api.token_texts import TokenTexts
from serving_client.engine.batching.sequence import Delta
from serving_client.engine.tool_call_reader import CallReader, Part, Piece, calls_in
from serving_client.engine.tool_calls import Call, ToolUse

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
    """Join one or more deltas of one answer, in their order, into a single one.

    It ends as the last one does, and has the prompt's log-probabilities of the first.
    """
    last = deltas[-1]
    return Delta(
        "".join(delta.text for delta in deltas),
        tuple(token for delta in deltas for token in delta.token_ids),
        last.finish_reason,
        last.stop_reason,
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        prompt_logprobs=deltas[0].prompt_logprobs,
        index=last.index,
    )


@dataclass(frozen=True)
class Options:
    """A client's options that change the form of the answer: token ids, log-probabilities, echoes, tools."""

    return_token_ids: bool = False
    logprobs: bool = False
    prompt_logprobs: bool = False
    # Of completions: the text of each prompt, to be visible before its answers; without answers if they are not wanted.
    echoes: tuple[str, ...] = ()
    is_echo_only: bool = False
    # Of chats: what may be called.
    tool_use: ToolUse | None = None


@dataclass(frozen=True)
class Format(ABC):
    """Base class of the response formats. Each object writes the body or the stream's chunks of one request."""

    model: str
    prompts: list[list[int]]
    count: int
    options: Options
    texts: TokenTexts
    id: str
    created: int = field(default_factory=lambda: int(time.time()))
    readers: dict[int, CallReader] = field(default_factory=dict)
    # Of each answer: the characters of the tokens that were listed.
    offsets: dict[int, int] = field(default_factory=dict)

    def echo(self, index: int) -> str:
        """Return the prompt that the answer with this index repeats before its text, "" if the client wants no echo."""
        return self.options.echoes[index // self.count] if self.options.echoes else ""

    def _head(self, kind: str) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _tokens(self, delta: Delta) -> list[int] | None:
        return list(delta.token_ids) if self.options.return_token_ids else None

    def _prompt(self, index: int) -> list[int] | None:
        return self.prompts[index // self.count] if self.options.return_token_ids else None

    def _prompt_logprobs(self, delta: Delta) -> list[Json | None] | None:
        return self.texts.prompt_logprobs(delta.prompt_logprobs) if self.options.prompt_logprobs else None

    def _whole(self, kind: str, choices: list[Json], completion_tokens: int) -> Json:
        return {
            **self._head(kind),
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": self._usage(completion_tokens),
            "kv_transfer_params": None,
        }

    def _usage(self, completion_tokens: int) -> Json:
        return usage(sum(map(len, self.prompts)), 0 if self.options.is_echo_only else completion_tokens)

    @abstractmethod
    def whole(self, answers: list[Delta]) -> Json:
        """Return the JSON body of an answer that is not streamed.

        `answers` has one delta for each answer of the request, joined from all of its own, in the order of their index.
        """

    @abstractmethod
    def chunks(self, delta: Delta, *, is_first: bool) -> list[Json]:
        """Return the chunks (JSON) that a stream sends for one delta; none if it has nothing to send.

        The deltas of an answer must come in order; `is_first` says that this is the first of its answer.
        """

    @abstractmethod
    def usage_chunk(self, completion_tokens: int) -> Json:
        """Return the stream's last chunk, with the token counts, for a client that set stream_options.include_usage."""


class CompletionFormat(Format):
    """Response format of /v1/completions."""

    def whole(self, answers: list[Delta]) -> Json:
        """Return the JSON body of a whole completion."""
        choices = []
        for answer in answers:
            visible = self._with_echo(answer)
            choice = {
                "index": answer.index,
                "text": visible.text,
                "logprobs": self._logprobs(visible, self._echoed(answer)),
                **self._end(answer),
                "token_ids": self._tokens(answer),
                "prompt_logprobs": self._prompt_logprobs(answer),
                "prompt_token_ids": self._prompt(answer.index),
            }
            choices.append(choice)
        return self._whole("text_completion", choices, sum(len(answer.token_ids) for answer in answers))

    def chunks(self, delta: Delta, *, is_first: bool) -> list[Json]:
        """Return the one chunk of a delta; the answer's first also repeats the prompt if the client wants an echo."""
        visible = self._with_echo(delta) if is_first else self._only_wanted(delta)
        choice = {
            "index": delta.index,
            "text": visible.text,
            "logprobs": self._logprobs(visible, self._echoed(delta) if is_first else None),
            **self._end(delta),
            "prompt_token_ids": self._prompt(delta.index) if is_first else None,
            "token_ids": self._tokens(delta),
        }
        return [{**self._head("text_completion"), "choices": [choice]}]

    def usage_chunk(self, completion_tokens: int) -> Json:
        """Return the stream's last chunk, with the token counts."""
        return {**self._head("text_completion"), "choices": [], "usage": self._usage(completion_tokens)}

    def _end(self, delta: Delta) -> Json:
        return {"finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}

    def _echoed(self, delta: Delta) -> list[int] | None:
        return self.prompts[delta.index // self.count] if self.options.echoes else None

    def _only_wanted(self, delta: Delta) -> Delta:
        if not self.options.is_echo_only:
            return delta
        return Delta("", (), delta.finish_reason, delta.stop_reason, index=delta.index)

    def _with_echo(self, delta: Delta) -> Delta:
        answer = self._only_wanted(delta)
        if not self.options.echoes:
            return answer
        text = self.echo(delta.index) + answer.text
        logprobs = delta.prompt_logprobs + answer.logprobs
        return replace(answer, text=text, logprobs=logprobs)

    def _logprobs(self, visible: Delta, prompt: list[int] | None) -> Json | None:
        if not self.options.logprobs:
            return None
        offset = self.offsets.get(visible.index, 0)
        listed = self.texts.completion_logprobs(prompt[:1] if prompt else [], visible.logprobs, offset)
        self.offsets[visible.index] = offset + sum(map(len, listed["tokens"]))
        return listed


class ChatFormat(Format):
    """Response format of /v1/chat/completions."""

    def whole(self, answers: list[Delta]) -> Json:
        """Return the JSON body of a whole chat completion."""
        choices = [self._choice(answer) for answer in answers]
        extra = {"prompt_logprobs": self._prompt_logprobs(answers[0]), "prompt_token_ids": self._prompt(0)}
        return {**self._whole("chat.completion", choices, sum(len(answer.token_ids) for answer in answers)), **extra}

    def _choice(self, answer: Delta) -> Json:
        use = self.options.tool_use
        text, calls = calls_in(answer.text, use) if use else (answer.text, [])
        content = None if calls and not text else text
        listed = [called(call) for call in calls]
        message: Json = {"role": "assistant", "content": content, "refusal": None, "tool_calls": listed}
        end = self._end(answer, has_calls=bool(calls))
        return {"index": answer.index, "message": message, **end, "token_ids": self._tokens(answer)}

    def chunks(self, delta: Delta, *, is_first: bool) -> list[Json]:
        """Return the chunks of a delta: the message's opening if it is the first, its text, pieces of tool calls."""
        part = self._part(delta)
        opening = [self._opening(delta.index)] if is_first else []
        pieces = [self._chunk(delta.index, {"tool_calls": [written(piece)]}) for piece in part.pieces]
        if not (part.text or delta.is_last or self.options.logprobs or self.options.return_token_ids):
            return [*opening, *pieces]
        reader = self.readers.get(delta.index)
        end = self._end(delta, has_calls=bool(reader and reader.has_calls))
        rest: Json = {**end, "token_ids": self._tokens(delta)}
        visible = {"content": part.text} if part.text or not pieces else {}
        chunk = self._chunk(delta.index, visible, **rest)
        # Text stands before the calls; the end of the answer behind them.
        return [*opening, *pieces, chunk] if delta.is_last else [*opening, chunk, *pieces]

    def _chunk(self, index: int, visible: Json, **rest: Any) -> Json:
        choice = {"index": index, "delta": visible, "logprobs": None, "finish_reason": None, **rest}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _part(self, delta: Delta) -> Part:
        """Return the text of a delta that is certainly no call, and what is new of calls."""
        if self.options.tool_use is None:
            return Part(delta.text)
        reader = self.readers.setdefault(delta.index, CallReader(self.options.tool_use))
        part = reader.add(delta.text)
        if not delta.is_last:
            return part
        rest = reader.end()
        return Part(part.text + rest.text, part.pieces + rest.pieces)

    def _end(self, delta: Delta, *, has_calls: bool) -> Json:
        logprobs = self.texts.chat_logprobs(delta.logprobs) if self.options.logprobs else None
        reason = delta.finish_reason
        # As OpenAI has it: who names the function knows that it is called.
        if has_calls and reason == "stop" and self.options.tool_use and not self.options.tool_use.is_named:
            reason = "tool_calls"
        return {"logprobs": logprobs, "finish_reason": reason, "stop_reason": delta.stop_reason}

    def _opening(self, index: int) -> Json:
        opening = {"role": "assistant", "content": ""}
        return {**self._chunk(index, opening), "prompt_token_ids": self._prompt(index)}

    def usage_chunk(self, completion_tokens: int) -> Json:
        """Return the stream's last chunk, with the token counts."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(completion_tokens)}


def called(call: Call) -> Json:
    """Return a tool call in OpenAI's form, with a new random id."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def written(piece: Piece) -> Json:
    """Return a piece of a tool call as OpenAI streams it: the first has id and name, later ones more arguments."""
    if piece.name is not None:
        return {"index": piece.index, **called(Call(piece.name, piece.arguments))}
    return {"index": piece.index, "function": {"arguments": piece.arguments}}


def new_id(prefix: str) -> str:
    """Return a new random id in vLLM's form, `PREFIX-16 hexadecimal digits`."""
    return f"{prefix}-{uuid.uuid4().hex[:16]}"


def in_order(deltas: Iterable[Delta]) -> list[Delta]:
    """Join the deltas of each answer to one, and return the answers in the order of their index."""
    parts: dict[int, list[Delta]] = {}
    for delta in deltas:
        parts.setdefault(delta.index, []).append(delta)
    return [joined(parts[index]) for index in sorted(parts)]
