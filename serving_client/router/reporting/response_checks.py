"""Checks of an answer's text: empty, a refusal, or of the wrong form. Pure; never on the request path."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import orjson
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from serving_client import regex
from serving_client.protocol import Checks

# Events of /v1/responses that bring a part of the answer.
RESPONSE_DELTAS = ("response.output_text.delta", "response.function_call_arguments.delta")


def text_of(content: bytes) -> str:
    """Return the first choice's text, with its tool calls, of a whole answer or recorded stream; "" if it has none."""
    return "".join(text_of_chunk(chunk) for chunk in chunks(content))


def chunks(content: bytes) -> Iterator[Any]:
    """Yield the JSON of a whole answer, or of each event of a stream; what is not JSON is left out."""
    events = [line[5:] for line in content.split(b"\n") if line.startswith(b"data:")]
    for part in events or [content]:
        try:
            yield orjson.loads(part)
        except orjson.JSONDecodeError:
            continue


def text_of_chunk(chunk: Any) -> str:
    """Return the text of the first choice in a chunk or whole answer, with its tool calls; "" if there is none."""
    if not isinstance(chunk, dict):
        return ""
    if chunk.get("object") == "response":
        return "".join(map(text_of_item, chunk.get("output") or ()))
    if chunk.get("type") in RESPONSE_DELTAS:
        return str(chunk.get("delta") or "")
    choices = chunk.get("choices")
    first: dict[str, Any] = next((choice for choice in choices or () if not choice.get("index")), {})
    message = first.get("message") or first.get("delta") or {}
    text = first.get("text") or message.get("content")
    return (text if isinstance(text, str) else "") + "".join(map(text_of_call, message.get("tool_calls") or ()))


def text_of_item(item: Any) -> str:
    """Return the text of an item of a response: that of a message, or the name and arguments of a call."""
    parts = item.get("content") or () if item.get("type") == "message" else ()
    text = "".join(part.get("text") or "" for part in parts)
    return text + (text_of_call({"function": item}) if item.get("type") == "function_call" else "")


def text_of_call(call: Any) -> str:
    """Return the name and the arguments of a call, or the part of them that an event holds."""
    function = call.get("function") or {}
    return f"{function.get('name') or ''}{function.get('arguments') or ''}"


def judged(checks: Checks, text: str) -> dict[str, Any]:
    """Return the results of the checks, True for an answer that is empty, a refusal or of a wrong form.

    `empty` is always there, `refusal` and `format_failure` only if they have a rule.
    """
    hints: dict[str, bool | None] = {"empty": not text.strip()}
    hints["refusal"] = contains(checks.refusal, text) if checks.refusal else None
    hints["format_failure"] = of_wrong_form(checks, text)
    return {name: value for name, value in hints.items() if value is not None}


def of_wrong_form(checks: Checks, text: str) -> bool | None:
    """Return True if the text breaks the schema or the pattern, False if it follows them.

    None if there is no rule, or only a pattern that RE2 refuses.
    """
    if checks.schema is not None and not obeys(checks.schema, text):
        return True
    matches = contains(checks.format, text) if checks.format else None
    if matches is None:
        return None if checks.schema is None else False
    return not matches


def contains(pattern: str, text: str) -> bool | None:
    """Return True if the text holds a match; None for a pattern that RE2 refuses, which says nothing of the answer."""
    try:
        return regex.contains(pattern, text)
    except regex.BadPattern:
        return None


def obeys(schema: Any, text: str) -> bool:
    """Return True if the text is JSON that the schema permits."""
    try:
        return bool(validator_for(schema, Draft202012Validator)(schema).is_valid(json.loads(text)))
    except (ValueError, RecursionError):
        return False
