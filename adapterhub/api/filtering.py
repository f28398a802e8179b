"""Filters of REST lists: a view's `filters` map query parameters to fields of its rows."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Protocol, cast

from django.core.exceptions import FieldDoesNotExist, ValidationError
from django.db import models
from django.db.models import QuerySet
from django.utils.dateparse import parse_datetime
from rest_framework.filters import BaseFilterBackend
from rest_framework.request import Request
from rest_framework.views import APIView

from adapterhub.core.errors import Invalid

# Parameters that every list accepts besides its filters.
SHARED = {"cursor", "page_size", "fields", "format"}
MOST_LETTERS = 500


class Filtered(Protocol):
    """The type of a view of rows with filters; `filters` maps a query parameter to a lookup."""

    queryset: QuerySet[Any]
    filters: dict[str, str]


class Narrowing(BaseFilterBackend):
    """A filter backend for lists.

    A parameter given twice matches either value; of one that compares, such as `at__gte`, the last value counts. An
    unknown one is refused, as ignoring it would show more rows than the caller meant.
    """

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: APIView) -> QuerySet[Any]:
        """Return the rows that match the request's parameters; other actions than the list are not filtered.

        Raises Invalid for an unknown name or a bad value.
        """
        if getattr(view, "action", None) != "list":
            return queryset
        filters = cast(Filtered, view).filters
        for name, values in request.query_params.lists():
            if name in filters:
                path = filters[name]
                field, lookup = field_of(queryset.model, path)
                wanted = [value_of(name, value, field) for value in values]
                queryset = queryset.filter(**({path: wanted[-1]} if lookup else {f"{path}__in": wanted}))
            elif name not in SHARED:
                offered = ", ".join(sorted(filters)) or "none"
                raise Invalid(
                    f"This list has no filter named {name[:50]!r}; its filters are {offered}.",
                    field=name[:50],
                    code="unknown_filter",
                )
        return queryset

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        """Return the OpenAPI parameters of the view's filters, which its list alone applies."""
        if getattr(view, "action", None) != "list":
            return []
        filtered = cast(Filtered, view)
        return [parameter(name, *field_of(filtered.queryset.model, path)) for name, path in filtered.filters.items()]


def field_of(model: type[models.Model], path: str) -> tuple[models.Field[Any, Any], str]:
    """Return the field at the end of a lookup path, and the comparison after it: of `created_at__gte` it is `gte`.

    The comparison is empty without one. Of a relation the field is the other model's key.
    """
    field: Any = None
    for part in path.split("__"):
        try:
            field = (field.related_model if field else model)._meta.get_field(part)
        except (FieldDoesNotExist, AttributeError):
            return field, part
    return field.target_field if field.is_relation else field, ""


def value_of(name: str, text: str, field: models.Field[Any, Any]) -> Any:
    """Return the text parsed as a value of the field. Raises Invalid, naming the parameter `name`, if it is none."""
    try:
        if len(text) > MOST_LETTERS or "\x00" in text:
            raise ValueError(text)
        if isinstance(field, models.DateTimeField):
            return moment(text)
        value = field.to_python(text)
        if field.choices and value not in dict(field.flatchoices):
            raise ValueError(text)
    except (ValidationError, ValueError, OverflowError):
        raise Invalid(f"{text[:50]!r} is not {meaning(field)}.", field=name, code="bad_filter") from None
    return value


def moment(text: str) -> datetime:
    """Parse a time with its zone and return it in UTC, as Postgres knows fewer zones than a request may name.

    Raises ValueError or OverflowError for any other text.
    """
    parsed = parse_datetime(text)
    if parsed is None or parsed.tzinfo is None:
        raise ValueError(text)
    return parsed.astimezone(UTC)


def meaning(field: models.Field[Any, Any]) -> str:
    """Return the kind of values that the field takes, as words for an error message."""
    if field.choices:
        return f"one of {', '.join(str(value) for value, _ in field.flatchoices)}"
    kinds = {
        models.UUIDField: "an id",
        models.IntegerField: "a whole number",
        models.DateTimeField: "a time with its zone",
    }
    return next((words for kind, words in kinds.items() if isinstance(field, kind)), "a text of this kind")


def parameter(name: str, field: models.Field[Any, Any], lookup: str) -> dict[str, Any]:
    """Return the filter's OpenAPI parameter; `lookup` is its comparison, such as `gte`.

    With an empty `lookup` the parameter may be given several times.
    """
    schema: dict[str, Any] = {"type": "string"}
    if isinstance(field, models.DateTimeField):
        schema = {"type": "string", "format": "date-time"}
    elif isinstance(field, models.IntegerField):
        schema = {"type": "integer"}
    elif isinstance(field, models.UUIDField):
        schema = {"type": "string", "format": "uuid"}
    elif field.choices:
        schema = {"type": "string", "enum": [str(value) for value, _ in field.flatchoices]}
    description = f"Compared by {lookup}." if lookup else "Given twice: either."
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema if lookup else {"type": "array", "items": schema},
    }
