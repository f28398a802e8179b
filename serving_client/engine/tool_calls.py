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
    """The functions of a request by name, and how they are to be called.

    `forced` is a function's name, or `required` for any of them; None if the model decides.
    """

    functions: Mapping[str, Json]
    forced: str | None = None
    most: int = MOST_CALLS

    @property
    def is_named(self) -> bool:
        """True if one function is to be called, and its arguments are all of the answer."""
        return self.forced in self.functions

    def schema(self) -> Json | None:
        """Return the JSON Schema of the whole answer where a call is forced. Raises ValueError for two that clash."""
        if self.forced is None:
            return None
        if self.is_named:
            return parameters_of(self.functions.get(self.forced, {}))
        definitions: Json = {}
        calls = [self._call(name, definitions) for name in self.functions]
        return {"type": "array", "minItems": 1, "maxItems": self.most, "items": {"anyOf": calls}, "$defs": definitions}

    @property
    def is_strict(self) -> bool:
        """True if the model decides, and a function's arguments must follow its schema all the same."""
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
        """Return the text beside the calls, and the calls."""
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
    """Return the JSON Schema of a function's arguments; any object without one."""
    return function.get("parameters") or {"type": "object"}


def in_tags(text: str) -> tuple[str, list[object]]:
    """Return the text outside of the tags, and the JSON in them; None for what is no JSON."""
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
    """Text of a stream whose calls are not shown as text: `add` parts, and show what it returns."""

    def __init__(self, use: ToolUse) -> None:
        self._use = use
        self._shown = 0
        self.text = ""

    def add(self, part: str) -> str:
        """Add a part of the text; return what is certainly no call."""
        self.text += part
        end = self._certain()
        visible, self._shown = self.text[self._shown : end], max(self._shown, end)
        return visible

    def end(self) -> tuple[str, Sequence[Call]]:
        """Return the text that was held back, and the calls."""
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
