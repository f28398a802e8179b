"""Grammars that constrain an answer to a form: they say which tokens may come next."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import llguidance.hf
import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, StructTag
from transformers import PreTrainedTokenizerFast

MOST_GRAMMARS = 64
# As Python writes JSON: without a choice of blanks no model can go on with them for ever.
JSON_STYLE: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# The thread that serves all requests computes the tokens that may come next: a fifth of the library's own limits.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}


class BadGrammar(ValueError):
    """Raised when a schema cannot be compiled or an answer cannot follow it any more; the message says why."""


class Grammar:
    """The position of one answer in a grammar. Not thread-safe."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def copy(self) -> Grammar:
        """Return an independent copy at the same position."""
        return Grammar(self._matcher.deep_copy())

    def forbidden(self, size: int) -> torch.Tensor:
        """Return a mask (size,) that is True for the tokens that may not come next. Raises BadGrammar if none may."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._require_sound()
        allowed = np.unpackbits(bits, bitorder="little")[:size]
        if not allowed.any():
            raise BadGrammar("no token can go on")
        mask = torch.ones(size, dtype=torch.bool)
        mask[: len(allowed)] = torch.from_numpy(allowed == 0)
        return mask

    def take(self, token: int) -> None:
        """Advance by a token. Raises BadGrammar if the grammar cannot go on."""
        self._matcher.consume_token(token)
        self._require_sound()

    @property
    def is_over(self) -> bool:
        """True once the answer is complete and no token may follow."""
        return self._matcher.is_stopped()

    def _require_sound(self) -> None:
        if self._matcher.is_error():
            raise BadGrammar(first_line(self._matcher.get_error()))


class Grammars:
    """Compiler of grammars for one tokenizer; the MOST_GRAMMARS most recently used are kept. Thread-safe.

    `vocabulary` is the number of the model's logits, `ends` the ids of tokens that end an answer. The tokenizer's
    tables are made when the first grammar is needed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, vocabulary: int, ends: Collection[int]) -> None:
        self._tokenizer, self._ends = tokenizer, sorted(ends)
        self._vocabulary = max(vocabulary, len(tokenizer))
        self._lock = threading.Lock()
        self._prepared: LLTokenizer | None = None
        self._compiled = lru_cache(MOST_GRAMMARS)(self._compile)

    def of_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """Return a grammar of JSON that follows the schema. Raises BadGrammar if the schema cannot be compiled."""
        try:
            source = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_STYLE)  # type: ignore[arg-type]
        except ValueError as error:
            raise BadGrammar(first_line(str(error))) from error
        return self._compiled(source).copy()

    def of_calls(self, trigger: str, calls: Mapping[str, Mapping[str, Any]], end: str) -> Grammar:
        """Return a grammar of free text with tool calls in it. Raises BadGrammar if it cannot be compiled.

        `calls` maps the text that opens a call, which starts with `trigger`, to the schema of its arguments; `end`
        closes a call.
        """
        style = {"x-guidance": JSON_STYLE}
        tags = [
            StructTag(trigger=trigger, begin=begin, grammar={**schema, **style}, end=end)
            for begin, schema in calls.items()
        ]
        return self._compiled(StructTag.to_grammar(tags, assume_special=False)).copy()

    def _compile(self, source: str) -> Grammar:
        matcher = LLMatcher(self._ready(), source, log_level=0, limits=LLParserLimits(**LIMITS))
        if matcher.is_error():
            raise BadGrammar(first_line(matcher.get_error()))
        return Grammar(matcher)

    def _ready(self) -> LLTokenizer:
        with self._lock:
            if self._prepared is None:
                self._prepared = llguidance.hf.from_tokenizer(self._tokenizer, self._vocabulary, self._ends or None)
            return self._prepared


def first_line(message: str) -> str:
    """Return the first line of an error's message, at most 300 characters."""
    return message.strip().partition("\n")[0][:300]
