"""Cursor pagination, which stays stable while rows are added, and whose pages fill no memory."""

from __future__ import annotations

import re
from functools import reduce
from itertools import accumulate
from operator import add
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Expression, F, Func, IntegerField, JSONField, Model, TextField, Value
from django.db.models.functions import Cast, Coalesce
from rest_framework.exceptions import NotFound
from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.views import APIView

from adapterhub.core.errors import Invalid

MOST_ROWS = 200
# A page also ends where the JSON of its rows has so many bytes: one row may have a megabyte.
MOST_BYTES = 4 * 2**20


class NewestFirst(CursorPagination):
    """Pages of rows by id, newest first, of at most 200 rows and MOST_BYTES, but one row at least."""

    ordering = "-id"
    page_size_query_param = "page_size"
    max_page_size = MOST_ROWS
    most_rows: int | None = None

    def get_page_size(self, request: Request) -> int | None:
        """Return the number of rows that `paginate_queryset` found to fit, else that of the query, else the default.

        Raises Invalid unless the query's is from 1 to 200.
        """
        text = request.query_params.get("page_size")
        if self.most_rows or text is None:
            return self.most_rows or self.page_size
        if not re.fullmatch(r"[1-9]\d{0,2}", text, re.ASCII) or int(text) > MOST_ROWS:
            raise Invalid(f"page_size is a whole number from 1 to {MOST_ROWS}, not {text[:50]!r}.", field="page_size")
        return int(text)

    def paginate_queryset(self, queryset: Any, request: Request, view: APIView | None = None) -> list[Any] | None:
        """Return the rows of the page that the query asks for, fewer than its size if their JSON is too large together.

        Raises Invalid for a bad size, and DRF's NotFound for a bad cursor. None if no page size is set at all.
        """
        self.require_position(queryset.model, request)
        if weight := self.weight_of(queryset.model, view):
            light = queryset.select_related(None).prefetch_related(None).only("pk", self.ordering.lstrip("-"))
            rows: list[Any] = super().paginate_queryset(light.annotate(page_bytes=weight), request, view) or []
            # A page towards newer rows begins at its end.
            ordered = rows[::-1] if self.cursor and self.cursor.reverse else rows
            ends = accumulate(row.page_bytes for row in ordered)
            self.most_rows = max(1, sum(end <= MOST_BYTES for end in ends))
        return super().paginate_queryset(queryset, request, view)

    def require_position(self, model: type[Model], request: Request) -> None:
        """Raise DRF's NotFound for a cursor that we did not make: its position is no value of the ordering's field."""
        cursor = self.decode_cursor(request)
        position: Any = cursor.position if cursor else None
        column: Any = model._meta.get_field(self.ordering.lstrip("-"))
        try:
            column.to_python(position)
        except ValidationError:
            raise NotFound(self.invalid_cursor_message) from None
        if position and "\0" in position:
            raise NotFound(self.invalid_cursor_message)

    def weight_of(self, model: type[Model], view: APIView | None) -> Expression | None:
        """Return the SQL expression for the bytes of a row's JSON columns and of the view's `weighs`; None without any.

        `weighs` are lookups to JSON of other rows that the list shows.
        """
        columns = [field.name for field in model._meta.concrete_fields if isinstance(field, JSONField)]
        columns += getattr(view, "weighs", ())
        lengths = [Coalesce(octets(Cast(F(name), TextField())), Value(0)) for name in columns]
        return reduce(add, lengths) if lengths else None

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        """Return the OpenAPI parameters of a page, with the bounds of its size."""
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            if parameter["name"] == self.page_size_query_param:
                parameter["schema"] |= {"minimum": 1, "maximum": MOST_ROWS}
        return parameters


def octets(text: Expression | F) -> Func:
    """Return the SQL expression for the number of bytes of a text, or of binary data."""
    return Func(text, function="octet_length", output_field=IntegerField())


class ByCreation(NewestFirst):
    """Pages of rows by the time of their creation, newest first."""

    ordering = "-created_at"
