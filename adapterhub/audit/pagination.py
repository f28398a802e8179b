"""Cursor pagination of audit events."""

from __future__ import annotations

from django.db.models import Expression, F, Model
from rest_framework.views import APIView

from adapterhub.api.pagination import NewestFirst, octets


class Events(NewestFirst):
    """Pages of audit events, newest first, measured by the bytes that were hashed."""

    def weight_of(self, model: type[Model], view: APIView | None) -> Expression | None:
        """Return the SQL expression for the number of bytes of an event's canonical text."""
        return octets(F("canonical"))
