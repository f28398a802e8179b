"""Conversations as a chat template renders them, with the characters that the loss counts: answers and their ends.

A template is asked twice: once with the conversation, once with a mark in the place of each piece of an answer. Where
the marks, replaced by their pieces, give the first text, they tell the place of every piece in it. Templates are not
prefix-stable, so the beginning of a conversation rendered alone tells nothing that is not checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

Turn = dict[str, Any]
REASONING = ("reasoning_content", "reasoning", "thinking")
THINK = re.compile(r"(</?think>)")
# What templates raise for a conversation that they do not take.
REFUSALS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
# An end of turn as templates write it, for tokenizers that do not call it special.
# Characters of a content that no markup holds by chance.
TELLING = 24
WRITTEN_END = r"<[^<>\s]{1,60}>|\[/?[A-Z_]{2,20}\]"


class ChatError(ValueError):
    """The template cannot render the conversation, or leaves out what it says."""


@dataclass(frozen=True)
class Span:
    """Characters of the rendered text that the loss counts with a weight."""

    start: int
    end: int
    weight: float = 1


@dataclass(frozen=True)
class Conversation:
    """A rendered conversation: its counted spans, and the weight of an end token that the text lacks, or None."""

    text: str
    spans: list[Span]
    open_end: float | None = None


@dataclass(frozen=True)
class Mark:
    """A piece of an answer in the rendered text. `leads`: the answer's own markup may stand before it."""

    turn: int
    start: int
    end: int
    leads: bool


def rendered(messages: Sequence[Turn], tools: list[Turn] | None, tokenizer: Any, weight: float = 1) -> Conversation:
    """Render a conversation and find what the loss counts. Raises ChatError naming the template and what it lacks."""
    template = Template(tokenizer, tools)
    text = template.text(messages)
    require_everything(template, messages, text)
    marks = marks_in(template, messages, text)
    if marks is None:
        return from_prefixes(template, messages, text, weight) or from_contents(template, messages, text, weight)
    return counted(template, messages, text, marks, weight)


def prompt_text(messages: Sequence[Turn], tools: list[Turn] | None, tokenizer: Any) -> str:
    """Render a conversation as an engine does that is to answer it. Raises ChatError."""
    return Template(tokenizer, tools).text(messages, add_generation_prompt=True)


@dataclass
class Template:
    """A tokenizer's chat template with the tools of a row."""

    tokenizer: Any
    tools: list[Turn] | None
    source: str = field(init=False)
    opening: str | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            message = "The rows hold messages, but the model's tokenizer has no chat template: give prompts instead."
            raise ChatError(message)
        self.source = str(self.tokenizer.get_chat_template(tools=self.tools))

    @property
    def name(self) -> str:
        """Return the name of the template's model for errors."""
        return Path(str(getattr(self.tokenizer, "name_or_path", ""))).name or "this model"

    def opens_with(self, tag: str, earlier: Sequence[Turn]) -> bool:
        """Return True if the tag opens the next answer, and so ends none."""
        if self.opening is None:
            # One rendering for all answers of a conversation: each begins with the same tag.
            self.opening = generation_prompt(self, earlier).lstrip()
        return self.opening.startswith(tag.strip())

    @property
    def reasoning_word(self) -> str:
        """Return the field in which the template looks for an answer's reasoning."""
        return next((name for name in REASONING if re.search(rf"[.'\"]{name}\b", self.source)), REASONING[0])

    @cached_property
    def end(self) -> re.Pattern[str]:
        """Return the pattern of an end of turn, with the space before it."""
        special = sorted(map(re.escape, self.tokenizer.all_special_tokens), key=len, reverse=True)
        return re.compile(rf"\s*(?:{'|'.join([*special, WRITTEN_END])})")

    def text(self, messages: Sequence[Turn], **options: Any) -> str:
        """Render the messages. Raises ChatError when the template refuses them, or renders nothing."""
        try:
            text = self.apply(messages, **options)
        except REFUSALS as error:
            message = f"The chat template of {self.name} refuses the conversation: {str(error).splitlines()[0]}"
            raise ChatError(message) from None
        if not text.strip():
            raise ChatError(f"The chat template of {self.name} renders no text.")
        return text

    def apply(self, messages: Sequence[Turn], **options: Any) -> str:
        """Render the messages; arguments of calls as objects, or as JSON for a template that joins them to a text."""
        try:
            return self.once(messages, as_text=False, **options)
        except REFUSALS:
            if not any(turn.get("tool_calls") for turn in messages):
                raise
            return self.once(messages, as_text=True, **options)

    def once(self, messages: Sequence[Turn], *, as_text: bool, **options: Any) -> str:
        """Render the messages in the template's own words for reasoning and arguments."""
        turns = [self.worded(turn, as_text=as_text) for turn in messages]
        return str(self.tokenizer.apply_chat_template(turns, tools=self.tools, tokenize=False, **options))

    def worded(self, turn: Turn, *, as_text: bool) -> Turn:
        """Return a turn with the fields that templates know, without our weight."""
        plain = {
            name: value for name, value in turn.items() if name not in ("weight", "tool_calls", "reasoning_content")
        }
        if "reasoning_content" in turn:
            plain[self.reasoning_word] = turn["reasoning_content"]
        if calls := turn.get("tool_calls"):
            plain["tool_calls"] = [with_arguments(call, as_text=as_text) for call in calls]
        return plain


def with_arguments(call: Turn, *, as_text: bool) -> Turn:
    """Return a call with its arguments as an object, or as JSON."""
    function = call["function"]
    arguments = function.get("arguments", {})
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def require_everything(template: Template, messages: Sequence[Turn], text: str) -> None:
    """Raise ChatError if the template leaves out tools, or the text of a system, user or tool message."""
    if template.tools and is_same_without_tools(template, messages, text):
        raise lacking(template, "tools")
    for place, turn in enumerate(messages):
        content = (turn.get("content") or "").strip()
        if turn["role"] == "assistant" or not content or (len(content) >= TELLING and content in text):
            continue
        word = unused_word(text)
        changed = [*messages[:place], {**turn, "content": word}, *messages[place + 1 :]]
        if word.casefold() not in template.text(changed).casefold():
            raise lacking(template, f"messages of the role {turn['role']}")


def is_same_without_tools(template: Template, messages: Sequence[Turn], text: str) -> bool:
    """Return True if the template renders the same text without the tools."""
    try:
        return Template(template.tokenizer, None).apply(messages) == text
    except REFUSALS:
        return False


def lacking(template: Template, what: str) -> ChatError:
    """Return the error of a template that leaves something out."""
    return ChatError(
        f"The chat template of {template.name} does not render {what}: take another base model or leave it out."
    )


def unused_word(text: str, number: int = 0) -> str:
    """Return a word of letters that the text does not hold."""
    stem = "Zqx"
    while stem in text:
        stem += "q"
    return f"{stem}{number}Y"


def marks_in(template: Template, messages: Sequence[Turn], text: str) -> list[Mark] | None:
    """Return the answers' pieces in the text, in its order; None where marks change the text elsewhere.

    Raises ChatError for a piece that the template leaves out.
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
    """A piece of a turn. `kind`: `content`, `reasoning` or `call`."""

    turn: int
    text: str
    kind: str
    leads: bool


class Marked:
    """Turns with a mark in the place of each piece of an answer; white space around pieces stays as it is."""

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.pieces: dict[str, Piece] = {}

    @property
    def pattern(self) -> re.Pattern[str]:
        """Return the pattern of the marks."""
        return re.compile(rf"{self.stem}\d+Y")

    def turn(self, place: int, turn: Turn) -> Turn:
        """Return the turn with marks; a turn that is no answer is returned as it is."""
        if turn["role"] != "assistant":
            return turn
        changed = {**turn, "content": self.content(place, turn.get("content") or "")}
        if "reasoning_content" in turn:
            changed["reasoning_content"] = self.piece(place, turn["reasoning_content"], "reasoning", leads=True)
        if calls := turn.get("tool_calls"):
            changed["tool_calls"] = [self.call(place, call) for call in calls]
        return changed

    def content(self, place: int, content: str) -> str:
        """Mark the text before, between and after tags of thought, which templates look for."""
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
        """Mark the name of a call, if it has one."""
        name = call["function"]["name"]
        return {**call, "function": {**call["function"], "name": self.piece(place, name, "call", leads=True)}}

    def piece(self, turn: int, text: str, kind: str, *, leads: bool) -> str:
        """Return the text with a mark in place of what is not white space around it."""
        plain = text.strip()
        if not plain:
            return text
        mark = f"{self.stem}{len(self.pieces)}Y"
        self.pieces[mark] = Piece(turn, plain, kind, leads)
        before = text[: len(text) - len(text.lstrip())]
        return f"{before}{mark}{text[len(text.rstrip()) :]}"

    def undone(self, text: str) -> tuple[str, list[Mark]]:
        """Return the text with pieces in place of their marks, and the place where each first stands."""
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
    """Raise ChatError for a call or an answer's text that is not rendered, or reasoning that never is."""
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


def renders_reasoning(template: Template) -> bool:
    """Return True if the template renders the reasoning of a last answer; of earlier ones many do not."""
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "reasoning_content": "Zqxq"}]
    try:
        return "Zqxq" in template.apply(turns)
    except REFUSALS:
        return False


def counted(template: Template, messages: Sequence[Turn], text: str, marks: list[Mark], weight: float) -> Conversation:
    """Return the spans of the answers: their pieces, the markup between them, and the end of turn."""
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
        if share:
            breaks = breaks_in(template, messages, place, text, pieces)
            spans += [Span(*part, share) for part in parts_of(start, end, breaks)]
            if following is None and not is_closed:
                open_end = share
        before = pieces[-1].end
    return Conversation(text, spans, open_end)


def parts_of(start: int, end: int, breaks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the characters from start to end without the breaks."""
    starts, ends = [start, *(place for _, place in breaks)], [*(place for place, _ in breaks), end]
    return list(zip(starts, ends, strict=True))


def breaks_in(
    template: Template, messages: Sequence[Turn], place: int, text: str, pieces: list[Mark]
) -> list[tuple[int, int]]:
    """Return the characters between the pieces of an answer that a tool has written: some templates put them there."""
    others = [turn["content"].strip() for turn in messages[place + 1 :] if turn["role"] == "tool" and turn["content"]]
    breaks = []
    for one, other in pairwise(pieces):
        gap = text[one.end : other.start]
        if any(content and content in gap for content in others):
            calls = [*messages[:place], {**messages[place], "content": ""}]
            breaks.append((one.end + len(common_start(gap, tail_of(template, calls, place))), other.start))
    return breaks


def start_of(template: Template, earlier: Sequence[Turn], text: str, before: int, first: Mark, turn: Turn) -> int:
    """Return where an answer begins: after the generation prompt with markup of its own, else at its text."""
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
    """Return the length of the white space at an answer's start that the template leaves there."""
    content = turn.get("content") or ""
    if content == content.lstrip():
        return 0
    try:
        bare = template.apply([*earlier, {**turn, "content": content.lstrip()}])
        return max(0, len(template.apply([*earlier, turn])) - len(bare))
    except REFUSALS:
        return 0


def generation_prompt(template: Template, earlier: Sequence[Turn]) -> str:
    """Return what the template adds for an answer to come; empty if that cannot be told."""
    try:
        without, with_prompt = template.apply(earlier), template.apply(earlier, add_generation_prompt=True)
    except REFUSALS:
        return ""
    return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""


def end_of(template: Template, messages: Sequence[Turn], place: int, gap: str) -> tuple[int, bool]:
    """Return how far an answer goes on behind its last piece, and if that is an end of turn.

    `gap` is the text from there to the next answer.
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
    """Return what stands behind the last piece of an answer when nothing follows it; empty if that cannot be told."""
    marked = Marked(unused_word(json.dumps(messages, ensure_ascii=False))[:-2])
    turns = [*messages[:place], marked.turn(place, messages[place])]
    try:
        text = template.apply(turns)
    except REFUSALS:
        return ""
    whole, marks = marked.undone(text)
    return whole[max((mark.end for mark in marks), default=len(whole)) :]


def common_start(one: str, other: str) -> str:
    """Return the common start of two texts, cut back to the end of a tag or an object."""
    size = next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    cut = max(one.rfind(last, 0, size) for last in ">}]")
    return one[: cut + 1]


def from_prefixes(template: Template, messages: Sequence[Turn], text: str, weight: float) -> Conversation | None:
    """Return the spans between beginnings of the conversation rendered alone, if all are beginnings of the text."""
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
        if share := weight * turn.get("weight", 1):
            spans.append(Span(len(start), len(whole.rstrip()), share))
    return Conversation(text, spans, open_end_of(template, text, spans))


def from_contents(template: Template, messages: Sequence[Turn], text: str, weight: float) -> Conversation:
    """Return the spans of the answers' contents, found in the text one message after the other. Raises ChatError."""
    spans, position = [], 0
    for turn in messages:
        content = (turn.get("content") or "").strip()
        start = text.find(content, position) if content else -1
        if start < 0:
            if turn["role"] != "assistant":
                continue
            raise lacking(template, "the answers as they are written")
        position = start + len(content)
        if turn["role"] == "assistant" and (share := weight * turn.get("weight", 1)):
            match = template.end.match(text, position)
            spans.append(Span(start, match.end() if match else position, share))
    return Conversation(text, spans, open_end_of(template, text, spans))


def answers_in(messages: Sequence[Turn]) -> Iterator[tuple[int, Turn]]:
    """Yield the answers with their places."""
    return ((place, turn) for place, turn in enumerate(messages) if turn["role"] == "assistant")


def open_end_of(template: Template, text: str, spans: list[Span]) -> float | None:
    """Return the last span's weight if it ends the text without an end of turn, else None."""
    if not spans or text[spans[-1].end :].strip():
        return None
    closed = any(match.end() == spans[-1].end for match in template.end.finditer(text, spans[-1].start))
    return None if closed else spans[-1].weight
