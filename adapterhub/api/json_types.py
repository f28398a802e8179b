"""Kinds of JSON values: Django REST framework takes `5` for a text and `"5"` for a number, which we refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework import serializers

from adapterhub.core.errors import Invalid

WHOLE, NUMBER, FLAG, TEXT = "a whole number", "a number", "true or false", "a text"
KINDS: list[tuple[type[Any], str]] = [
    (serializers.BooleanField, FLAG),
    (serializers.IntegerField, WHOLE),
    (serializers.FloatField, NUMBER),
    (serializers.CharField, TEXT),
    (serializers.ChoiceField, TEXT),
    (serializers.DateTimeField, TEXT),
    (serializers.UUIDField, TEXT),
]


def require_types(field: Any, value: Any, path: str = "") -> None:
    """Raise Invalid, with the field's path, for a value of another kind than the field's. Null is left to the field.

    `field` is a serializer or one of its fields, `value` the parsed JSON for it, which is checked to its depth, and
    `path` its place in the body, "" for the body itself.
    """
    if isinstance(field, serializers.Serializer) and isinstance(value, Mapping):
        for name, inner in field.fields.items():
            if name in value:
                require_types(inner, value[name], f"{path}.{name}".lstrip("."))
    elif isinstance(field, serializers.ListSerializer | serializers.ListField) and isinstance(value, list):
        for place, item in enumerate(value):
            require_types(field.child, item, f"{path}[{place}]")
    elif isinstance(field, serializers.DictField) and isinstance(value, Mapping):
        for name, item in value.items():
            require_types(field.child, item, f"{path}.{name}")
    elif value is not None and (kind := kind_of(field)) and not is_of(kind, value):
        raise Invalid(f"{path} must be {kind}.", field=path)


def kind_of(field: Any) -> str:
    """Return the kind of value that the field takes, as words such as "a whole number".

    It is "" for a field that takes any kind or checks it itself.
    """
    choices = field.choices if isinstance(field, serializers.ChoiceField) else {}
    if choices and all(isinstance(choice, int) for choice in choices):
        return WHOLE
    return next((kind for known, kind in KINDS if isinstance(field, known)), "")


def is_of(kind: str, value: Any) -> bool:
    """Return True if parsed JSON is of the kind. 5.0 is a whole number, as in JSON Schema."""
    if kind == TEXT:
        return isinstance(value, str)
    if kind == FLAG or isinstance(value, bool):
        return isinstance(value, bool) and kind == FLAG
    return isinstance(value, int) or (isinstance(value, float) and (kind == NUMBER or value.is_integer()))
