"""Serializers and fields that several resources use."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from adapterhub.core.references import REFERENCE_IN_BODY


def slug_of(name: str = "slug", **options: Any) -> serializers.SlugRelatedField[Any]:
    """Return a read-only field that shows a related object by its field `name`.

    `options` go to the serializer field.
    """
    return serializers.SlugRelatedField(slug_field=name, read_only=True, **options)


def reference(**options: Any) -> serializers.RegexField:
    """Return a text field for an object's name, `dora`, or its name with its project, `eu.dora`."""
    return serializers.RegexField(REFERENCE_IN_BODY, max_length=101, **options)


class ReasonSerializer(serializers.Serializer[Any]):
    """A required reason, which the audit trail keeps."""

    reason = serializers.CharField(max_length=2000)
