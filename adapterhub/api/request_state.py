"""Attributes that our middleware and throttles leave on a request for those that come after them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from django.http import HttpRequest
from rest_framework.request import Request

from serving_client.protocol import RateLimit


@dataclass(frozen=True)
class Taken:
    """A caller's token bucket after a call: calls `left`, and `wait_s`, the seconds to wait if it was empty, else 0."""

    limit: RateLimit
    left: int
    wait_s: float


class MarkedRequest(HttpRequest):
    """A request with its id and, once they are known, what it took from its caller's bucket and the scopes it used.

    `used_scopes` are pairs of a project's key and a scope.
    """

    request_id: str
    taken: Taken
    used_scopes: set[tuple[int, str]]


def marked(request: HttpRequest | Request) -> MarkedRequest:
    """Return the request itself, typed: these attributes are set on the objects that Django and DRF make."""
    return cast(MarkedRequest, request)
