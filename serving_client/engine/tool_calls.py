"""Calls of tools in an answer: in the form of a chat template, or as the JSON that a grammar forces. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Of Hermes, Qwen and many more; Llama and Mistral write bare JSON after a special token, which the text lacks.
OPENS, CLOSES = "<tool_call>", "</tool_call>"
ARGUMENTS = ("arguments", "parameters")
MOST_CALLS = 16
Json = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """A call of a tool; `arguments` is JSON, or the beginning of it where the answer was cut off."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolUse:
    """The functions of a request by name, how they are to be called, and at most how many calls there may be.

    `forced` is a function's name, or `required` for any of them; None if the model decides.
    """

    functions: Mapping[str, Json]
    forced: str | None = None
    most: int = MOST_CALLS

    @property
    def is_named(self) -> bool:
        """True if one named function must be called; the whole answer is its arguments then."""
        return self.forced in self.functions

    def schema(self) -> Json | None:
        """Return the JSON Schema of the whole answer if a call is forced, else None.

        Raises ValueError if definitions in the functions' schemas clash.
        """
        if self.forced is None:
            return None
        if self.is_named:
            return parameters_of(self.functions.get(self.forced, {}))
        definitions: Json = {}
        calls = [self._call(name, definitions) for name in self.functions]
        return {"type": "array", "minItems": 1, "maxItems": self.most, "items": {"anyOf": calls}, "$defs": definitions}

    @property
    def is_strict(self) -> bool:
        """True if the model decides, but at least one function demands arguments that follow its schema."""
        return self.forced is None and any(function.get("strict") for function in self.functions.values())

    def openings(self) -> dict[str, Json]:
        """Map the text that opens a call of each function, up to its arguments, to the schema of those."""
        return {
            f'{OPENS}\n{{"name": {json.dumps(name)}, "arguments": ': parameters_of(function)
            for name, function in self.functions.items()
        }

    def _call(self, name: str, definitions: Json) -> Json:
        schema = dict(parameters_of(self.functions[name]))
        # References count from the root of the whole schema.
        for key, value in schema.pop("$defs", {}).items():
            if definitions.setdefault(key, value) != value:
                raise ValueError(f"two functions define {key!r} differently in $defs")
        properties = {"name": {"const": name}, "parameters": schema}
        required = list(properties)
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    def parsed(self, text: str) -> tuple[str, list[Call]]:
        """Return (text beside the calls, calls) of a complete answer.

        If one call cannot be read, none counts: then all is text, or "" where a call was forced.
        """
        if self.is_named:
            return "", [Call(str(self.forced), text)]
        rest, items = in_tags(text) if OPENS in text and self.forced is None else ("", json_or_none(text))
        calls = [self._read(item) for item in (items if isinstance(items, list) else [items])]
        known = [call for call in calls if call]
        if not known or len(known) < len(calls):
            return ("" if self.forced else text), []
        return rest.strip(), known[: self.most]

    def _read(self, item: object) -> Call | None:
        if not isinstance(item, dict) or item.get("name") not in self.functions:
            return None
        arguments: object = next((item[key] for key in ARGUMENTS if key in item), {})
        return Call(
            item["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        )


def parameters_of(function: Json) -> Json:
    """Return the JSON Schema of a function's arguments; that of any object if it has none."""
    return function.get("parameters") or {"type": "object"}


def in_tags(text: str) -> tuple[str, list[object]]:
    """Return the text outside of the call tags, and the parsed JSON inside each; None for what is no JSON."""
    before, *parts = text.split(OPENS)
    rest, items = [before], []
    for part in parts:
        inside, _, after = part.partition(CLOSES)
        items.append(json_or_none(inside))
        rest.append(after)
    return "".join(rest), items


def json_or_none(text: str) -> object:
    """Parse JSON; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class CallFilter:
    """The text of a stream without its tool calls: `add` each part and show what it returns, then `end`."""

    def __init__(self, use: ToolUse) -> None:
        self._use = use
        self._shown = 0
        self.text = ""

    def add(self, part: str) -> str:
        """Add a part of the text; return the new text that certainly belongs to no call."""
        self.text += part
        end = self._certain()
        visible, self._shown = self.text[self._shown : end], max(self._shown, end)
        return visible

    def end(self) -> tuple[str, Sequence[Call]]:
        """Return the text that was held back and is no call, and the calls."""
        rest, calls = self._use.parsed(self.text)
        if not calls:
            return rest[self._shown :], []
        beside = in_tags(self.text)[0] if OPENS in self.text and not self._use.forced else ""
        return beside[self._shown :].strip(), calls

    def _certain(self) -> int:
        start = self.text.lstrip()[:1]
        # A call of Llama or Mistral is the whole answer.
        if self._use.forced or start in ("", "{", "["):
            return self._shown
        if (place := self.text.find(OPENS)) >= 0:
            return place
        return next(
            (len(self.text) - n for n in range(len(OPENS) - 1, 0, -1) if self.text.endswith(OPENS[:n])), len(self.text)
        )
