"""Fields that a serializer does not know, or that a form has twice: they are refused, so that none is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from django.utils.datastructures import MultiValueDict
from rest_framework import serializers

from adapterhub.core.errors import Invalid

# Fields that take several values of a form.
LISTS = (
    serializers.ListField,
    serializers.ListSerializer,
    serializers.ManyRelatedField,
    serializers.MultipleChoiceField,
)


def require_known(serializer: Any, body: Any, path: str = "") -> None:
    """Raise Invalid, with the field's path, for a field that the serializer lacks, or one of a single value sent twice.

    `serializer` may also be a field of one, `body` is the data for it, and `path` the prefix of its fields' names. A
    form alone can have a field twice.
    """
    if isinstance(serializer, serializers.ListSerializer):
        for place, item in enumerate(body if isinstance(body, list) else ()):
            require_known(serializer.child, item, f"{path}{place}.")
    elif isinstance(serializer, serializers.Serializer) and isinstance(body, Mapping):
        fields = serializer.fields
        for name in body:
            if name not in fields:
                raise unknown(f"{path}{name}", str(name), list(fields))
            require_one(body, name, fields[name])
        for name, field in fields.items():
            require_known(field, body.get(name), f"{path}{name}.")


def require_one(body: Mapping[str, Any], name: str, field: Any) -> None:
    """Raise Invalid for a form that has a field of one value twice: all but the last would be dropped in silence."""
    if isinstance(body, MultiValueDict) and not isinstance(field, LISTS) and len(body.getlist(name)) > 1:
        raise Invalid(f"{name} is there twice: send it once.", field=name, code="duplicate_name")


def unknown(path: str, name: str, known: list[str]) -> Invalid:
    """Return, without raising it, the Invalid for an unknown field.

    It names the field that was probably meant, or all known ones. `path` is the field's whole path, and `name` its end.
    """
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}."
    return Invalid(f"{path} is unknown; {hint}", field=path, code="unknown_field")
