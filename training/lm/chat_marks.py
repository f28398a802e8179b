"""Marks in place of the pieces of answers, by which the pieces are found in a rendered conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from serving_client.chat_conventions import REFUSALS
from training.lm.chat_template import Template, Turn, lacking, renders_reasoning, unused_word

THINK = re.compile(r"(</?think>)")


@dataclass(frozen=True)
class Mark:
    """A piece of the answer at index `turn`, at the characters [start, end) of the rendered text.

    `leads` is True if the answer's own markup may stand before it.
    """

    turn: int
    start: int
    end: int
    leads: bool


def marks_in(template: Template, messages: Sequence[Turn], text: str) -> list[Mark] | None:
    """Return the answers' pieces in the order of the text, which is the rendered conversation.

    None if marks in their place change the text elsewhere, or if the template refuses them. Raises ChatError for a
    piece that the template leaves out.
    """
    marked = Marked(unused_word(text + json.dumps(messages, ensure_ascii=False))[:-2])
    turns = [marked.turn(place, turn) for place, turn in enumerate(messages)]
    try:
        with_marks = template.apply(turns)
    except REFUSALS:
        return None
    require_pieces(template, marked, with_marks)
    rebuilt, places = marked.undone(with_marks)
    return places if rebuilt == text else None


@dataclass(frozen=True)
class Piece:
    """A piece of the turn at index `turn`; `kind` is `content`, `reasoning` or `call`.

    `leads` is True if the answer's own markup may stand before it.
    """

    turn: int
    text: str
    kind: str
    leads: bool


class Marked:
    """Replacement of the pieces of answers by marks, and back; white space around pieces stays.

    `stem` is the beginning of all marks, which must not occur in the conversation.
    """

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.pieces: dict[str, Piece] = {}

    @property
    def pattern(self) -> re.Pattern[str]:
        """Return the pattern that matches the marks."""
        return re.compile(rf"{self.stem}\d+Y")

    def turn(self, place: int, turn: Turn) -> Turn:
        """Return the turn with marks in place of its pieces, which are remembered; other turns than answers unchanged.

        `place` is the turn's index.
        """
        if turn["role"] != "assistant":
            return turn
        changed = {**turn, "content": self.content(place, turn.get("content") or "")}
        if "reasoning_content" in turn:
            changed["reasoning_content"] = self.piece(place, turn["reasoning_content"], "reasoning", leads=True)
        if calls := turn.get("tool_calls"):
            changed["tool_calls"] = [self.call(place, call) for call in calls]
        return changed

    def content(self, place: int, content: str) -> str:
        """Return the content with marks for the texts before, between and after its <think> tags."""
        parts = THINK.split(content)
        leads = content.lstrip().startswith("<think>") or parts[1:2] == ["</think>"]
        made = []
        for part, following in zip(parts, [*parts[1:], ""], strict=True):
            is_thought = following == "</think>"
            made.append(
                part
                if THINK.fullmatch(part)
                else self.piece(place, part, "reasoning" if is_thought else "content", leads=leads)
            )
        return "".join(made)

    def call(self, place: int, call: Turn) -> Turn:
        """Return the call with a mark in place of its name; a blank name stays."""
        name = call["function"]["name"]
        return {**call, "function": {**call["function"], "name": self.piece(place, name, "call", leads=True)}}

    def piece(self, turn: int, text: str, kind: str, *, leads: bool) -> str:
        """Remember the text as a piece and return its mark, with the white space around the text.

        A blank text unchanged.
        """
        plain = text.strip()
        if not plain:
            return text
        mark = f"{self.stem}{len(self.pieces)}Y"
        self.pieces[mark] = Piece(turn, plain, kind, leads)
        before = text[: len(text) - len(text.lstrip())]
        return f"{before}{mark}{text[len(text.rstrip()) :]}"

    def undone(self, text: str) -> tuple[str, list[Mark]]:
        """Return the text with marks replaced by their pieces, and the first place of each piece in it."""
        parts: list[str] = []
        places: dict[str, Mark] = {}
        position = length = 0
        for match in self.pattern.finditer(text):
            piece = self.pieces[match[0]]
            start = length + match.start() - position
            places.setdefault(match[0], Mark(piece.turn, start, start + len(piece.text), piece.leads))
            parts += [text[position : match.start()], piece.text]
            position, length = match.end(), start + len(piece.text)
        return "".join([*parts, text[position:]]), list(places.values())


def require_pieces(template: Template, marked: Marked, text: str) -> None:
    """Raise ChatError if the text lacks the name of a call or the text of an answer.

    `text` is the conversation as rendered with the marks of `marked`. Missing reasoning is an error only if the
    template never renders reasoning.
    """
    # A template may change the case of what it renders.
    plain = text.casefold()
    missing = [piece for mark, piece in marked.pieces.items() if mark.casefold() not in plain]
    if any(piece.kind == "call" for piece in missing):
        raise lacking(template, "tool_calls")
    if any(piece.kind == "content" for piece in missing):
        raise lacking(template, "the text of answers beside their calls")
    reasoning = {piece for piece in marked.pieces.values() if piece.kind == "reasoning"}
    if reasoning and reasoning <= set(missing) and not renders_reasoning(template):
        raise lacking(template, "reasoning_content")
