"""The JSON that callers may send: bounded in its depth and the length of its texts, which can all be stored."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from math import isfinite
from typing import Any

from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser, MultiPartParser
from rest_framework.utils import json as strict_json

from adapterhub.core.errors import Invalid

DEEPEST = 250
# So many names make the path of a field in an error.
NAMED = 2
LONGEST_TEXT = 20_000
# The most characters of all texts, keys and numbers of a field together.
LARGEST_FIELD = 200_000
# A text without an end reaches to the end: it is not searched for one again from each of its quotes.
TOKEN = re.compile(r'"(?:[^"\\]|\\.|\\\Z)*+"?|[{}\[\]]', re.DOTALL)
SURROGATES = re.compile("[\ud800-\udfff]")


class BoundedJSONParser(JSONParser):
    """A JSON parser that refuses a body nested too deeply or with an infinite number, and names the field."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        """Return the parsed body.

        Raises Invalid for one that is nested too deeply, has a name twice or holds an infinite number, and DRF's
        ParseError for one that is no JSON.
        """
        body = stream.read()
        try:
            text = body.decode((parser_context or {}).get("encoding", "utf-8"))
            parsed = strict_json.loads(text, object_pairs_hook=partial(named_once, ""))
        except ValueError as error:
            raise ParseError(f"JSON parse error - {error}") from None
        except RecursionError:
            raise too_deep(deep_field_of(body.decode(errors="replace"))) from None
        for name, value in fields_of(parsed):
            require_shallow(name, value)
            require_finite(name, value)
        return parsed


class NamedMultiPartParser(MultiPartParser):
    """A parser of forms with files that refuses a body without a named part, which would be read as an empty one."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        """Return the parsed form. Raises Invalid for a body without a named part, and DRF's ParseError for no form."""
        parsed = super().parse(stream, media_type, parser_context)
        meta = parser_context["request"].META
        # The last boundary has two hyphens more before it and behind it, and a line break.
        boundary = str(meta["CONTENT_TYPE"]).partition("boundary=")[2]
        if not (parsed.data or parsed.files) and int(meta.get("CONTENT_LENGTH") or 0) > len(boundary) + 8:
            raise Invalid("The form has no part with a name: give each a Content-Disposition with one.")
        return parsed


class BoundedJSONField(serializers.JSONField):
    """A serializer field of any JSON, which a form sends as text."""

    def to_internal_value(self, data: Any) -> Any:
        """Return the parsed value.

        Raises Invalid for one nested too deeply, too long, with a name twice, an infinite number or characters that
        cannot be stored, and DRF's ValidationError for text that is no JSON.
        """
        try:
            value = super().to_internal_value(data)
            if getattr(data, "is_json_string", False):
                json.loads(data, object_pairs_hook=partial(named_once, f"{self.field_name}."))
        except RecursionError:
            raise too_deep(str(self.field_name)) from None
        require_finite(str(self.field_name), value)
        require_texts({self.field_name: value})
        return value


def named_once(prefix: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these names and values, as a hook of `json.loads`.

    `prefix` stands before the name in an error's field. Raises Invalid for a name that is there twice: all but its last
    value would be dropped in silence.
    """
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            field = f"{prefix}{readable(name)}"
            raise Invalid(f"{field or 'A name'} is there twice: send it once.", field=field, code="duplicate_name")
        seen[name] = value
    return seen


def too_deep(field: str) -> Invalid:
    """Return, without raising it, the Invalid that names the field which is nested too deeply; "" is the body."""
    return Invalid(
        f"{field or 'The body'} may be nested at most {DEEPEST} levels deep: flatten it.", field=field, code="too_deep"
    )


def deep_field_of(text: str) -> str:
    """Return the path of the field in which a JSON text is nested too deeply, such as `checks.schema`.

    It has at most NAMED names and is cut to 100 characters; "" if the text is nested in lists alone.
    """
    # Of each object or array that is open, the bracket, and the last text in it: of an object's value, its name.
    open_parts: list[list[str]] = []
    for match in TOKEN.finditer(text):
        part = match[0]
        if part in "]}":
            del open_parts[-1:]
        elif part in "[{":
            open_parts.append([part, '""'])
        elif open_parts:
            open_parts[-1][1] = part
        if len(open_parts) > DEEPEST + 1:
            break
    return readable(".".join(text_in(name) for bracket, name in open_parts[:NAMED] if bracket == "{"))


def text_in(token: str) -> str:
    """Return the text of a JSON string; "" for anything else."""
    try:
        return str(json.loads(token, strict=False))
    except ValueError:
        return ""


def readable(field: str) -> str:
    """Return a field's name without characters that no response can hold, cut to 100 characters."""
    return SURROGATES.sub("", field.replace("\0", ""))[:100]


def fields_of(parsed: Any) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a body's fields; a body that is no object is one value without a name."""
    yield from parsed.items() if isinstance(parsed, dict) else [("", parsed)]


def require_shallow(field: str, value: Any) -> None:
    """Raise Invalid, with the field's path, if parsed JSON is nested too deeply."""
    if is_deep(value, DEEPEST):
        inner = value.items() if isinstance(value, dict) else []
        deep = next((f".{name}" for name, part in inner if is_deep(part, DEEPEST - 1)), "")
        raise too_deep(readable(f"{field}{deep}"))


def require_finite(field: str, value: Any) -> None:
    """Raise Invalid if parsed JSON holds a number that is not finite: 1e400 is infinite where it is read."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, float) and not isfinite(part):
            message = f"{field or 'The body'} holds a number that is too large: at most 1.7e308 can be stored."
            raise Invalid(message, field=field, code="number_too_large")
        waiting += parts_of(part)


def is_deep(value: Any, most: int) -> bool:
    """Return True if parsed JSON has values inside more than `most` levels of nested objects and arrays."""
    level = [value]
    for _ in range(most + 1):
        level = [inner for outer in level for inner in parts_of(outer)]
        if not level:
            return False
    return True


def parts_of(value: Any) -> Iterator[Any]:
    """Yield the values inside an object or a list."""
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list | tuple):
        yield from value


def require_texts(data: Any, long_fields: frozenset[str] = frozenset()) -> None:
    """Raise Invalid, naming the field, if a text of a body or query, or a key, is too long or cannot be stored.

    A whole field has a limit, too. Only `long_fields` may be as long as the body.
    """
    for name, value in fields_of(data):
        field = readable(str(name))
        require_shallow(field, value)
        length = 0
        for text in texts([name, value]):
            require_storable(field, text)
            length += len(text)
            if len(text) > LONGEST_TEXT and name not in long_fields:
                message = f"{field or 'A text'} may have at most {LONGEST_TEXT:,} characters: shorten it."
                raise Invalid(message, field=field, code="text_too_long")
        if length > LARGEST_FIELD and name not in long_fields:
            message = f"{field or 'The body'} may have at most {LARGEST_FIELD:,} characters in all: shorten it."
            raise Invalid(message, field=field, code="field_too_large")


def require_storable(field: str, text: str) -> None:
    """Raise Invalid, naming the field, if Postgres cannot store the text: it has a NUL or a lone surrogate."""
    if "\0" in text:
        message = f"{field or 'A text'} may not contain a NUL character: remove it."
        raise Invalid(message, field=field, code="null_characters_not_allowed")
    if not text.isascii() and SURROGATES.search(text):
        message = f"{field or 'A text'} contains half a character (a lone surrogate): send the whole character."
        raise Invalid(message, field=field, code="surrogate_characters_not_allowed")


def texts(value: Any) -> Iterator[str]:
    """Yield every text in parsed JSON or a form, keys included, and numbers as text."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, int | float):
            yield str(part)
