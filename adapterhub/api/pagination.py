"""Cursor pagination, which stays stable while rows are added."""

from __future__ import annotations

import re
from typing import Any

from rest_framework.pagination import CursorPagination
from rest_framework.request import Request
from rest_framework.views import APIView

from adapterhub.core.errors import Invalid

MOST_ROWS = 200


class NewestFirst(CursorPagination):
    """Pages of rows by id, newest first, of at most 200 rows."""

    ordering = "-id"
    page_size_query_param = "page_size"
    max_page_size = MOST_ROWS

    def get_page_size(self, request: Request) -> int | None:
        """Return the number of rows that the query asks for, else the default.

        Raises Invalid unless it is from 1 to 200.
        """
        text = request.query_params.get("page_size")
        if text is None:
            return self.page_size
        if not re.fullmatch(r"[1-9]\d{0,2}", text, re.ASCII) or int(text) > MOST_ROWS:
            raise Invalid(f"page_size is a whole number from 1 to {MOST_ROWS}, not {text[:50]!r}.", field="page_size")
        return int(text)

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        """Return the OpenAPI parameters of a page, with the bounds of its size."""
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            if parameter["name"] == self.page_size_query_param:
                parameter["schema"] |= {"minimum": 1, "maximum": MOST_ROWS}
        return parameters


class ByCreation(NewestFirst):
    """Pages of rows by the time of their creation, newest first."""

    ordering = "-created_at"
