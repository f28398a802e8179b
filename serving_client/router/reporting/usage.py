"""Tokens of question and answer: what the engine says, or an estimate where it says nothing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from serving_client.router.request_fields import Body

COUNTS = re.compile(rb'"(prompt_tokens|completion_tokens|input_tokens|output_tokens)":\s*(\d+)')
# Engines write the counts last, but for what their clients ask beside the answer.
TAIL_BYTES = 4096
MOST_SEARCHED_BYTES = 4 * 2**20
# Ten figures or more are no count: no context is so long, and no column of the database holds it.
MOST_FIGURES = 9
# Of English under the common tokenizers. Only for engines that do not count.
CHARACTERS_A_TOKEN = 4
# Messages, their parts, and the text of a part.
DEEPEST = 4


@dataclass(frozen=True)
class Usage:
    """Token counts of question and answer; `is_estimated` says that the engine did not count them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_estimated: bool = False


def usage_in(content: bytes) -> Usage | None:
    """Return the last counts of tokens in a whole answer or an event of a stream.

    None if it holds no count, or one of more than MOST_FIGURES digits.
    """
    tail, end = content[-TAIL_BYTES:], content[-MOST_SEARCHED_BYTES:]
    counts: dict[bytes, bytes] = dict(COUNTS.findall(tail) or COUNTS.findall(end))
    if not counts or any(len(count) > MOST_FIGURES for count in counts.values()):
        return None
    prompt = counts.get(b"prompt_tokens") or counts.get(b"input_tokens") or b"0"
    return Usage(int(prompt), int(counts.get(b"completion_tokens") or counts.get(b"output_tokens") or b"0"))


def tokens_of_text(text: str) -> int:
    """Return an estimate of the tokens in a text, from its characters; 0 only for an empty one."""
    return math.ceil(len(text) / CHARACTERS_A_TOKEN)


def tokens_of_question(body: Body) -> int:
    """Return an estimate of the tokens in the messages, prompts or inputs; those sent as token ids are counted."""
    return tokens_in(body.get("messages") or body.get("prompt") or body.get("input"))


def tokens_in(part: Any, depth: int = 0) -> int:
    """Return an estimate of the tokens in a text, a message or a list of them; token ids are counted.

    What is nested deeper than DEEPEST counts 0.
    """
    if isinstance(part, str):
        return tokens_of_text(part)
    if depth > DEEPEST:
        return 0
    if isinstance(part, dict):
        return tokens_in(part.get("content") or part.get("text"), depth + 1)
    if isinstance(part, list):
        return len(part) if part and isinstance(part[0], int) else sum(tokens_in(item, depth + 1) for item in part)
    return 0


def estimated(body: Body, answer: str) -> Usage:
    """Return estimated counts of tokens for a question and its answer."""
    return Usage(tokens_of_question(body), tokens_of_text(answer), is_estimated=True)
