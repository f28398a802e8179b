"""Cursor pagination, which stays stable while rows are added."""

from rest_framework.pagination import CursorPagination


class NewestFirst(CursorPagination):
    ordering = "-id"
    page_size_query_param = "page_size"
    max_page_size = 200


class ByCreation(NewestFirst):
    ordering = "-created_at"
