"""Fields of a body that its serializer does not know: they are refused, so that a misspelt one is not ignored."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from rest_framework import serializers

from adapterhub.core.errors import Invalid


def require_known(serializer: Any, body: Any, path: str = "") -> None:
    """Raise Invalid, with the field's path, for a field of the body that the serializer does not take."""
    if isinstance(serializer, serializers.ListSerializer):
        for place, item in enumerate(body if isinstance(body, list) else ()):
            require_known(serializer.child, item, f"{path}{place}.")
    elif isinstance(serializer, serializers.Serializer) and isinstance(body, Mapping):
        fields = serializer.fields
        for name in body:
            if name not in fields:
                raise unknown(f"{path}{name}", str(name), list(fields))
        for name, field in fields.items():
            require_known(field, body.get(name), f"{path}{name}.")


def unknown(path: str, name: str, known: list[str]) -> Invalid:
    """Return the Invalid for an unknown field, with the name that was probably meant, or all names."""
    near = get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known) or 'none'}."
    return Invalid(f"{path} is unknown; {hint}", field=path, code="unknown_field")
