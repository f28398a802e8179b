"""Checks of an answer's text: empty, a refusal, or of the wrong form. Pure; never on the request path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from serving_client import patterns
from serving_client.protocol import Checks


def text_of(content: bytes) -> str:
    """Return the first choice's text of a whole answer or a stream; empty if there is none."""
    return "".join(text_of_chunk(chunk) for chunk in chunks(content))


def chunks(content: bytes) -> Iterator[Any]:
    """Yield the JSON of a whole answer, or of each event of a stream."""
    events = [line[6:] for line in content.split(b"\n") if line.startswith(b"data: ")]
    for part in events or [content]:
        try:
            yield orjson.loads(part)
        except orjson.JSONDecodeError:
            continue


def text_of_chunk(chunk: Any) -> str:
    """Return the text in a chunk or whole answer; empty if it holds none."""
    choices = chunk.get("choices") if isinstance(chunk, dict) else None
    first = choices[0] if choices else {}
    text = first.get("text") or (first.get("message") or first.get("delta") or {}).get("content")
    return text if isinstance(text, str) else ""


def judged(checks: Checks, text: str) -> dict[str, Any]:
    """Return `empty`, `refusal` and `format_failure`, each only if there is a rule to check the text against."""
    hints: dict[str, bool | None] = {"empty": not text.strip()}
    hints["refusal"] = contains(checks.refusal, text) if checks.refusal else None
    hints["format_failure"] = of_wrong_form(checks, text)
    return {name: value for name, value in hints.items() if value is not None}


def of_wrong_form(checks: Checks, text: str) -> bool | None:
    """Return True if the text breaks the schema or the pattern; None without a rule that could be checked."""
    if checks.schema is not None and not obeys(checks.schema, text):
        return True
    matches = contains(checks.format, text) if checks.format else None
    if matches is None:
        return None if checks.schema is None else False
    return not matches


def contains(pattern: str, text: str) -> bool | None:
    """Search the pattern in the text; None for a pattern that the engine refuses, which says nothing of the answer."""
    try:
        return patterns.contains(pattern, text)
    except patterns.BadPattern:
        return None


def obeys(schema: Any, text: str) -> bool:
    """Return True if the text is JSON of the schema."""
    try:
        return bool(validator_for(schema, Draft202012Validator)(schema).is_valid(json.loads(text)))
    except (ValueError, RecursionError):
        return False
