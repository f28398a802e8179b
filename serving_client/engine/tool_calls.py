"""Calls of tools in an answer: in the form of a chat template, or as the JSON that a grammar forces. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def parameters_of(function: Json) -> Json:
    """Return the JSON Schema of a function's arguments; that of any object if it has none."""
    return function.get("parameters") or {"type": "object"}
