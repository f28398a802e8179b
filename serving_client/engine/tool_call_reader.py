"""Reader of an answer's text that tells calls of tools from text, while the answer is written. Pure.

A call begins as soon as its function is known, and its arguments follow in pieces, word for word as they are written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serving_client.engine.tool_calls import ARGUMENTS, CLOSES, OPENS, Call, ToolUse

# The object of a call up to its arguments, which are an object.
HEAD = re.compile(
    r'\{\s*(?:"(?:type|id)"\s*:\s*"[^"\\]*"\s*,\s*)*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*'
    rf'"(?:{"|".join(ARGUMENTS)})"\s*:\s*(?=\{{)'
)
LONGEST_HEAD = 2000
# What an object without tags begins with that may be a call.
FIRST_KEY = re.compile(rf'\{{\s*(?:$|"(?:(?:type|id|name|{"|".join(ARGUMENTS)})"|[a-z]*$))')


@dataclass(frozen=True)
class Piece:
    """A part of a tool call: the call's number, from 0, and more of its arguments.

    Only the first part of a call has the function's name; it is None in the others.
    """

    index: int
    arguments: str
    name: str | None = None


@dataclass(frozen=True)
class Part:
    """New text of an answer outside its calls, followed by new pieces of its calls."""

    text: str = ""
    pieces: tuple[Piece, ...] = ()


class Braces:
    """Search for the end of a JSON object whose text arrives in parts; `start` is the index of its opening brace."""

    def __init__(self, start: int) -> None:
        self._at, self._depth, self._in_text, self._is_escaped = start, 0, False, False
        self.end: int | None = None

    def search(self, text: str) -> int | None:
        """Return the index just after the object; None until it is complete. `text` is the whole text so far."""
        while self.end is None and self._at < len(text):
            self._take(text[self._at])
            self._at += 1
            if not self._depth:
                self.end = self._at
        return self.end

    def _take(self, letter: str) -> None:
        if self._in_text:
            self._in_text = self._is_escaped or letter != '"'
            self._is_escaped = letter == "\\" and not self._is_escaped
        elif letter == '"':
            self._in_text = True
        else:
            self._depth += (letter in "{[") - (letter in "}]")


class CallReader:
    """Reader of one answer: `add` parts of its text, then `end`; both return what may be shown."""

    def __init__(self, use: ToolUse) -> None:
        self._use = use
        self._text = ""
        self._at = 0
        self._calls = 0
        self._object: OpenObject | None = None
        self._read: Callable[[], Iterator[Part]] = self._forced if use.forced else self._beginning
        self._is_over = False

    @property
    def has_calls(self) -> bool:
        """True once a call has begun."""
        return self._calls > 0

    def add(self, part: str) -> Part:
        """Add a part of the answer's text; return the new text and pieces of calls that are certain by now.

        What may still be the beginning of a call is held back.
        """
        self._text += part
        return self._shown()

    def end(self) -> Part:
        """Return what was held back: text that is no call, and calls that were cut off."""
        self._is_over = True
        return self._shown()

    def _shown(self) -> Part:
        texts, pieces = [], []
        for part in self._parts():
            texts.append(part.text)
            pieces += [piece for piece in part.pieces if piece.index < self._use.most]
        return Part("".join(texts), tuple(pieces))

    def _parts(self) -> Iterator[Part]:
        """Read on until nothing more is certain."""
        while True:
            before = self._at, self._read, self._object
            yield from self._read()
            if before == (self._at, self._read, self._object):
                return

    def _forced(self) -> Iterator[Part]:
        """Read the arguments of the named function, or the list of calls that the grammar forces."""
        if not self._use.is_named:
            self._read = self._list
            return
        if not self._calls and (self._text or self._is_over):
            self._calls = 1
            yield Part(pieces=(Piece(0, "", str(self._use.forced)),))
        if self._at < len(self._text):
            yield Part(pieces=(Piece(0, self._rest()),))

    def _beginning(self) -> Iterator[Part]:
        """Decide by the first letters if the answer is calls without tags, as Llama's and Mistral's are."""
        start = self._text.lstrip()
        if not start and not self._is_over:
            return
        second = start[1:].lstrip()[:1]
        if start[:1] == "[" and not second and not self._is_over:
            return
        is_bare = start[:1] == "{" or (start[:1] == "[" and second == "{")
        self._read = self._list if is_bare else self._beside
        yield from ()

    def _list(self) -> Iterator[Part]:
        """Read calls one after the other, with what parts them."""
        place = self._at
        while place < len(self._text) and self._text[place] in " \t\r\n[],;":
            place += 1
        if place == len(self._text):
            if self._is_over and not self._use.forced and not self._calls:
                yield Part(self._rest())
            return
        if self._text[place] != "{":
            self._read = self._plain
            return
        if self._use.forced or self._calls:
            self._at = place
        self._object = OpenObject(place, len(self._text))
        self._read = self._bare_object

    def _bare_object(self) -> Iterator[Part]:
        """Read an object without tags, and take all for text if it is no call."""
        yield from self._call(self._list, self._plain)
        if self._object and not (self._object.may_be_call(self._text) or self._use.forced):
            self._object, self._read = None, self._plain

    def _beside(self) -> Iterator[Part]:
        """Read text until a tag opens a call."""
        place = self._text.find(OPENS, self._at)
        if place >= 0:
            yield from self._shown_beside(place)
            start = place + len(OPENS)
            if (match := re.compile(r"\s*(?=\S)").match(self._text, start)) is None:
                if self._is_over:
                    yield Part(self._rest())
                return
            self._object = OpenObject(match.end(), match.end())
            self._read = self._tagged_object
            return
        waiting = 0 if self._is_over else kept_back(self._text)
        yield from self._shown_beside(len(self._text) - waiting)

    def _shown_beside(self, end: int) -> Iterator[Part]:
        """Show text up to a place; behind calls only at the end of the answer, without the space around it."""
        text = self._text[self._at : end]
        is_last = self._is_over or end < len(self._text) - kept_back(self._text)
        if text and (is_last or not self._calls):
            self._at = end
            visible = text if not self._calls else text.rstrip()
            if visible:
                yield Part(visible)

    def _tagged_object(self) -> Iterator[Part]:
        """Read an object in tags up to the tag that closes it."""
        yield from self._call(self._closing, self._no_call)

    def _closing(self) -> Iterator[Part]:
        """Pass over the tag that closes a call."""
        place = self._text.find(CLOSES, self._at)
        if place >= 0 or self._is_over:
            self._at = place + len(CLOSES) if place >= 0 else len(self._text)
            self._read = self._beside
        yield from ()

    def _no_call(self) -> Iterator[Part]:
        """Show tags and what is in them as text."""
        place = self._text.find(CLOSES, self._at)
        if place >= 0 or self._is_over:
            end = place + len(CLOSES) if place >= 0 else len(self._text)
            self._read = self._beside
            yield Part(self._text[self._at : end])
            self._at = end

    def _plain(self) -> Iterator[Part]:
        """Show everything as text."""
        if self._at < len(self._text):
            yield Part(self._rest())

    def _rest(self) -> str:
        text, self._at = self._text[self._at :], len(self._text)
        return text

    def _call(self, then: Callable[[], Iterator[Part]], otherwise: Callable[[], Iterator[Part]]) -> Iterator[Part]:
        """Read the object of a call; go on with `then`, or with `otherwise` where it is none."""
        opened = self._object
        assert opened is not None  # noqa: S101 - set with the state
        for piece in opened.pieces(self._text, self._use, self._calls):
            self._calls += piece.name is not None
            yield Part(pieces=(piece,))
        if opened.end is not None:
            if opened.is_call:
                self._at = opened.end
            self._object, self._read = None, (then if opened.is_call else otherwise)
        elif self._is_over:
            if opened.is_call or self._use.forced:
                self._at = len(self._text)
            self._object, self._read = None, (then if opened.is_call or self._use.forced else otherwise)


class OpenObject:
    """A JSON object that may be a call, from index `start` of the answer's text on; its end may not be there yet."""

    def __init__(self, start: int, searched: int) -> None:
        self.start = start
        self.end: int | None = None
        self.is_call = False
        self._braces = Braces(start)
        self._arguments: Braces | None = None
        self._shown = start
        self._index = 0

    def pieces(self, text: str, use: ToolUse, index: int) -> Iterator[Piece]:
        """Yield the new pieces of the call; `text` is the whole text so far.

        `index` is the number that this call gets if the object is one.
        """
        if text[self.start : self.start + 1] != "{":
            self.end = self.start
            return
        end = self._braces.search(text)
        if not self.is_call and (head := HEAD.match(text, self.start, self.start + LONGEST_HEAD)):
            name = json.loads(head[1])
            if name in use.functions:
                self.is_call, self._index = True, index
                self._arguments, self._shown = Braces(head.end()), head.end()
                yield Piece(index, "", name)
        if self._arguments is not None:
            yield from self._more(text)
        elif end is not None and (call := read_call(text[self.start : end], use)):
            self.is_call = True
            yield Piece(index, "", call.name)
            yield Piece(index, call.arguments)
        self.end = end

    def may_be_call(self, text: str) -> bool:
        """Return True unless it begins with something that no call begins with."""
        return self.is_call or bool(FIRST_KEY.match(text, self.start, self.start + LONGEST_HEAD))

    def _more(self, text: str) -> Iterator[Piece]:
        assert self._arguments is not None  # noqa: S101 - asked before
        place = self._arguments.search(text)
        stop = len(text) if place is None else place
        if stop > self._shown:
            yield Piece(self._index, text[self._shown : stop])
            self._shown = stop


def read_call(text: str, use: ToolUse) -> Call | None:
    """Parse a whole JSON object as a tool call; return None if it is no call of one of the functions in `use`."""
    try:
        item = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(item, dict) or item.get("name") not in use.functions:
        return None
    arguments: object = next((item[key] for key in ARGUMENTS if key in item), {})
    return Call(item["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def kept_back(text: str) -> int:
    """Return how many letters at the end of the text may be the start of a tag."""
    return next((size for size in range(len(OPENS) - 1, 0, -1) if text.endswith(OPENS[:size])), 0)


def calls_in(text: str, use: ToolUse) -> tuple[str, list[Call]]:
    """Return the text outside the calls of a whole answer, and the calls, in their order.

    If there are calls, the text is stripped of the space around it.
    """
    reader = CallReader(use)
    parts = [reader.add(text), reader.end()]
    beside = "".join(part.text for part in parts)
    calls: list[Call] = []
    for piece in (piece for part in parts for piece in part.pieces):
        if piece.name is not None:
            calls.append(Call(piece.name, piece.arguments))
        else:
            calls[-1] = Call(calls[-1].name, calls[-1].arguments + piece.arguments)
    return (beside.strip() if calls else beside), calls
