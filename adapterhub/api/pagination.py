"""Cursor pagination, which stays stable while rows are added."""

from rest_framework.pagination import CursorPagination


class NewestFirst(CursorPagination):
    """Pages of rows by id, newest first, of at most 200 rows."""

    ordering = "-id"
    page_size_query_param = "page_size"
    max_page_size = 200


class ByCreation(NewestFirst):
    """Pages of rows by the time of their creation, newest first."""

    ordering = "-created_at"
