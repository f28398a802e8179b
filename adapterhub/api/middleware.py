"""Middleware that gives each request an id, kept in the audit trail too, and joins it to the caller's trace."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

from django.contrib import messages
from django.core.exceptions import MiddlewareNotUsed
from django.http import HttpRequest, HttpResponse

from adapterhub import tracing
from adapterhub.api.request_state import marked
from adapterhub.core.unpublished_changes import begin_request, is_unpublished
from serving_client import telemetry

# Anchors of regular-expression routes, removed from the route in a span's name.
ANCHORS = str.maketrans("", "", "^$")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Return a middleware that sets the request's id, on the request and the response.

    It is the caller's X-Request-ID if that has up to 64 letters, digits, `.`, `_` or `-`, else a new one.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        sent_id = request.headers.get("X-Request-ID", "")
        accepted_id = sent_id if REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        marked(request).request_id = accepted_id
        response = get_response(request)
        response["X-Request-ID"] = accepted_id
        return response

    return middleware


def publication(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Return a middleware that shows a warning on the next page if a change has not reached the routers yet.

    REST calls answer 202 instead.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        begin_request()
        response = get_response(request)
        if is_unpublished() and not request.path.startswith("/api/"):
            messages.warning(request, "The change is stored. The routers will follow it as soon as Valkey answers.")
        return response

    return middleware


def span(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Return a middleware that exports an OpenTelemetry span for each request, named after its method and route.

    The query string is left out: it may hold a secret. Raises MiddlewareNotUsed if no collector of spans is set.
    """
    if not telemetry.is_on():
        raise MiddlewareNotUsed

    def middleware(request: HttpRequest) -> HttpResponse:
        method, path = str(request.method), request.path
        attributes = {"http__request__method": method, "url__path": path}
        with telemetry.serving(method, request.headers, **attributes) as server_span:
            response = get_response(request)
            route = request.resolver_match.route.translate(ANCHORS) if request.resolver_match else ""
            server_span.update_name(f"{method} {route}".strip())
            request_id = marked(request).request_id
            telemetry.tell(server_span, response.status_code, http__route=route, adapterhub__request_id=request_id)
            return response

    return middleware


def trace(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Return a middleware that continues the trace in the caller's header `traceparent`, or else begins one.

    All that the request queues belongs to it. The response has the header, too.
    """

    def middleware(request: HttpRequest) -> HttpResponse:
        before = tracing.enclosing.set(tracing.continued(request.headers.get("traceparent", "")))
        try:
            response = get_response(request)
            response["traceparent"] = tracing.enclosing.get()
            return response
        finally:
            tracing.enclosing.reset(before)

    return middleware
