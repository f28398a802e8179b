"""A request id on every answer, the same one that the audit trail keeps, and the trace that it belongs to."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from adapterhub import tracing

GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Take the caller's X-Request-ID when it is harmless, else make one."""

    def middleware(request: HttpRequest) -> HttpResponse:
        given = request.headers.get("X-Request-ID", "")
        request.request_id = given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        response = get_response(request)
        response["X-Request-ID"] = request.request_id
        return response

    return middleware


def trace(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Go on with the caller's trace; what the request queues belongs to it."""

    def middleware(request: HttpRequest) -> HttpResponse:
        before = tracing.current.set(tracing.continued(request.headers.get("traceparent", "")))
        try:
            response = get_response(request)
            response["traceparent"] = tracing.current.get()
            return response
        finally:
            tracing.current.reset(before)

    return middleware
