"""Conversations as a chat template renders them, with the characters that the loss counts: answers and their ends.

A template is rendered twice: once with the conversation, once with a mark in place of each piece of an answer. If
replacing the marks by their pieces gives the first text, the marks show where each piece is in it. The rendering of the
beginning of a conversation need not be the beginning of the rendered conversation, so it is only used after a check.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from serving_client.chat_conventions import REFUSALS
from training.lm.chat_marks import Mark, Marked, marks_in
from training.lm.chat_template import (
    Template,
    Turn,
    generation_prompt,
    lacking,
    require_everything,
    unused_word,
)


@dataclass(frozen=True)
class Span:
    """Characters [start, end) of an answer in the rendered text, and the weight that the loss gives them.

    0 is not counted.
    """

    start: int
    end: int
    weight: float = 1


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation with the spans of its answers.

    `open_end` is the weight of an end token that the last answer lacks in the text, or None if it lacks none.
    """

    text: str
    spans: list[Span]
    open_end: float | None = None


def rendered(messages: Sequence[Turn], tools: list[Turn] | None, tokenizer: Any, weight: float = 1) -> Conversation:
    """Render a conversation and find its answers in the text; the row's `weight` multiplies that of each answer.

    Raises ChatError, which names the model, if its template leaves something out or cannot render the conversation.
    """
    template = Template(tokenizer, tools)
    text = template.text(messages)
    require_everything(template, messages, text)
    marks = marks_in(template, messages, text)
    if marks is None:
        return from_prefixes(template, messages, text, weight) or from_contents(template, messages, text, weight)
    return counted(template, messages, text, marks, weight)


def counted(template: Template, messages: Sequence[Turn], text: str, marks: list[Mark], weight: float) -> Conversation:
    """Return the conversation with the spans of its answers: pieces, the markup between them, and the end of turn.

    `marks` are the places of all pieces in `text`, from `marks_in`. `weight` is the row's; each answer's own weight is
    multiplied with it.
    """
    spans, open_end = [], None
    answers = [place for place, turn in enumerate(messages) if turn["role"] == "assistant"]
    groups = {place: [mark for mark in marks if mark.turn == place] for place in answers}
    known = [place for place in answers if groups[place]]
    before = 0
    for place, following in zip(known, [*known[1:], None], strict=True):
        pieces = groups[place]
        stop = groups[following][0].start if following is not None else len(text)
        start = start_of(template, messages[:place], text, before, pieces[0], messages[place])
        pieces = [mark for mark in pieces if mark.start < stop]
        end, is_closed = end_of(template, messages, place, text[pieces[-1].end : stop])
        end += pieces[-1].end
        share = weight * messages[place].get("weight", 1)
        breaks = breaks_in(template, messages, place, text, pieces)
        spans += [Span(*part, share) for part in parts_of(start, end, breaks)]
        if following is None and not is_closed:
            open_end = share
        before = pieces[-1].end
    return Conversation(text, spans, open_end)


def parts_of(start: int, end: int, breaks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges of characters from start to end that lie outside of the breaks."""
    starts, ends = [start, *(place for _, place in breaks)], [*(place for place, _ in breaks), end]
    return list(zip(starts, ends, strict=True))


def breaks_in(
    template: Template, messages: Sequence[Turn], place: int, text: str, pieces: list[Mark]
) -> list[tuple[int, int]]:
    """Return the ranges between the pieces of an answer in which a tool's text stands; some templates put it there.

    `place` is the answer's index in `messages`, `pieces` are its own. A range begins after the markup that ends the
    piece before it, and ends where the next piece begins.
    """
    others = [turn["content"].strip() for turn in messages[place + 1 :] if turn["role"] == "tool" and turn["content"]]
    breaks = []
    for one, other in pairwise(pieces):
        gap = text[one.end : other.start]
        if any(content and content in gap for content in others):
            calls = [*messages[:place], {**messages[place], "content": ""}]
            breaks.append((one.end + len(common_start(gap, tail_of(template, calls, place))), other.start))
    return breaks


def start_of(template: Template, earlier: Sequence[Turn], text: str, before: int, first: Mark, turn: Turn) -> int:
    """Return the character at which an answer begins.

    If the answer's own markup may stand before its first piece, it begins after the part of the generation prompt that
    the text has there; otherwise it begins at its first piece. `earlier` are the messages before the answer `turn`,
    `before` is the end of the last piece of the answer before it, or 0.
    """
    if not first.leads:
        return first.start - kept_space(template, earlier, turn)
    prompt = generation_prompt(template, earlier)
    gap = text[before : first.start]
    for size in range(len(prompt), 0, -1):
        is_boundary = size == len(prompt) or prompt[size - 1].isspace() or prompt[size - 1] in ">]:"
        if is_boundary and (place := gap.rfind(prompt[:size])) >= 0:
            return before + place + size
    return first.start


def kept_space(template: Template, earlier: Sequence[Turn], turn: Turn) -> int:
    """Return the number of white-space characters at an answer's start that the template keeps."""
    content = turn.get("content") or ""
    if content == content.lstrip():
        return 0
    try:
        bare = template.apply([*earlier, {**turn, "content": content.lstrip()}])
        return max(0, len(template.apply([*earlier, turn])) - len(bare))
    except REFUSALS:
        return 0


def end_of(template: Template, messages: Sequence[Turn], place: int, gap: str) -> tuple[int, bool]:
    """Return (number of characters of the answer after its last piece, True if they end with an end of turn).

    `place` is the answer's index in `messages`, `gap` the text from its last piece to the next answer.
    """
    has_calls = bool(messages[place].get("tool_calls"))
    if not has_calls and (match := template.end.match(gap)):
        return (0, False) if template.opens_with(match[0], messages[:place]) else (match.end(), True)
    tail = tail_of(template, messages, place).rstrip()
    if not tail or not gap.startswith(tail):
        tail = common_start(gap, tail) if has_calls else ""
    ends = [match.end() for match in template.end.finditer(tail)]
    if ends and ends[-1] == len(tail) and not tail.endswith(("/tool_call>", "/tool_calls>", "/function_calls>")):
        return len(tail), True
    if (match := template.end.match(gap, len(tail))) and not template.opens_with(match[0], messages[:place]):
        return match.end(), True
    return len(tail), bool(tail) and not has_calls


def tail_of(template: Template, messages: Sequence[Turn], place: int) -> str:
    """Return the text that the template writes after an answer's last piece if nothing follows it.

    `place` is the answer's index in `messages`. "" if the text cannot be determined.
    """
    marked = Marked(unused_word(json.dumps(messages, ensure_ascii=False))[:-2])
    turns = [*messages[:place], marked.turn(place, messages[place])]
    try:
        text = template.apply(turns)
    except REFUSALS:
        return ""
    whole, marks = marked.undone(text)
    return whole[max((mark.end for mark in marks), default=len(whole)) :]


def common_start(one: str, other: str) -> str:
    """Return the text that both begin with, cut after the last `>`, `}` or `]` in it; "" if it has none of these."""
    size = next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    cut = max(one.rfind(last, 0, size) for last in ">}]")
    return one[: cut + 1]


def from_prefixes(template: Template, messages: Sequence[Turn], text: str, weight: float) -> Conversation | None:
    """Return the conversation with its answers' spans, found by rendering each beginning of the conversation alone.

    None unless the text begins with the rendering of every beginning.
    """
    spans = []
    for place, turn in answers_in(messages):
        try:
            start, whole = (
                template.apply(messages[:place], add_generation_prompt=True),
                template.apply(messages[: place + 1]),
            )
        except REFUSALS:
            return None
        if not text.startswith(start) or not text.startswith(whole.rstrip()) or len(whole.rstrip()) <= len(start):
            return None
        spans.append(Span(len(start), len(whole.rstrip()), weight * turn.get("weight", 1)))
    return Conversation(text, spans, open_end_of(template, text, spans))


def from_contents(template: Template, messages: Sequence[Turn], text: str, weight: float) -> Conversation:
    """Return the conversation with the spans of its answers' contents, which are searched for in the text in order.

    Raises ChatError if an answer's content is not in the text.
    """
    spans, position = [], 0
    for turn in messages:
        content = (turn.get("content") or "").strip()
        start = text.find(content, position) if content else -1
        if start < 0:
            if turn["role"] != "assistant":
                continue
            raise lacking(template, "the answers as they are written")
        position = start + len(content)
        if turn["role"] == "assistant":
            match = template.end.match(text, position)
            spans.append(Span(start, match.end() if match else position, weight * turn.get("weight", 1)))
    return Conversation(text, spans, open_end_of(template, text, spans))


def answers_in(messages: Sequence[Turn]) -> Iterator[tuple[int, Turn]]:
    """Return an iterator over (place, turn) of the assistant's turns."""
    return ((place, turn) for place, turn in enumerate(messages) if turn["role"] == "assistant")


def open_end_of(template: Template, text: str, spans: list[Span]) -> float | None:
    """Return the last span's weight if it ends the text without an end of turn, else None."""
    if not spans or text[spans[-1].end :].strip():
        return None
    closed = any(match.end() == spans[-1].end for match in template.end.finditer(text, spans[-1].start))
    return None if closed else spans[-1].weight
