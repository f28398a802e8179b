"""Problem JSON (RFC 9457) for every error of the REST API."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

from django.db import OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.template.loader import render_to_string
from django.views.defaults import page_not_found
from rest_framework import exceptions
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import set_rollback

from adapterhub.api.parsers import SURROGATES
from adapterhub.api.permissions import actor_of
from adapterhub.api.request_state import marked
from adapterhub.core.domain_signals import access_refused
from adapterhub.core.errors import DomainError, NotAllowed, NotSignedIn, OutOfSpace, TooMany, Unavailable

TITLES = {
    400: "Bad request",
    401: "Not signed in",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Too slow",
    409: "Conflict",
    412: "Changed meanwhile",
    413: "Too large",
    415: "Unsupported media type",
    422: "Cannot be processed",
    429: "Too many requests",
    431: "Header too long",
    503: "Unavailable",
    507: "Out of space",
}
CONTENT_TYPE = "application/problem+json"


def problem(status: int, code: str, detail: str, errors: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """Return the body of a problem response; `errors` is a list of {field, code, message}.

    Lone surrogates are replaced.
    """
    return {
        "type": f"urn:adapterhub:problem:{code}",
        "title": TITLES.get(status, "Error"),
        "status": status,
        "code": code,
        "detail": SURROGATES.sub("\N{REPLACEMENT CHARACTER}", detail),
        "errors": [
            {name: SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text) for name, text in error.items()}
            for error in errors or []
        ],
    }


def sayable(text: str) -> str:
    """Return the text with U+FFFD in place of lone surrogates, which no response can encode."""
    return SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def problem_response(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Return domain errors, a database that is away, and DRF's errors as problem JSON, as DRF's exception handler.

    The transaction is rolled back, and a refusal recorded. Returns None, which gives a 500, for other errors.
    """
    if isinstance(exc, OperationalError):
        exc = Unavailable("The database does not respond. Nothing was changed: try again.")
    if isinstance(exc, DomainError):
        set_rollback()
        if isinstance(exc, NotAllowed):
            note_refusal(exc, context["request"])
        one = [{"field": exc.field, "code": exc.code, "message": exc.detail}] if exc.field else []
        errors = exc.errors or one
        return answer(problem(exc.status, exc.code, exc.detail, errors), headers_of(exc))
    if isinstance(exc, Http404):
        exc = exceptions.NotFound("The requested object does not exist.")
    if not isinstance(exc, exceptions.APIException):
        return None
    set_rollback()
    return answer(from_drf(exc), headers_of(exc))


def note_refusal(exc: NotAllowed, request: Request) -> None:
    """Send the signal that the caller was refused, which the audit trail records."""
    access_refused.send(sender=None, by=actor_of(request), path=request.path, code=exc.code)


def from_drf(exc: exceptions.APIException) -> dict[str, Any]:
    """Return the body of the problem for an error of Django REST framework; validation errors get status 422."""
    if isinstance(exc, exceptions.ValidationError):
        errors = list(field_errors(exc.get_full_details()))
        detail = "; ".join(f"{error['field'] or 'request'}: {error['message']}" for error in errors)
        return problem(422, "invalid", detail, errors)
    return problem(exc.status_code, str(exc.get_codes()), str(exc.detail))


def field_errors(details: Any, path: str = "") -> Iterator[dict[str, str]]:
    """Yield DRF's nested error details as {field, code, message}, with the field's path."""
    if isinstance(details, list):
        for index, item in enumerate(details):
            leaf = isinstance(item, dict) and set(item) == {"message", "code"}
            yield from field_errors(item, path if leaf or len(details) == 1 else f"{path}[{index}]")
    elif isinstance(details, dict) and set(details) == {"message", "code"}:
        yield {"field": path, "code": str(details["code"]), "message": str(details["message"])}
    else:
        for name, item in details.items():
            segment = "" if name == "non_field_errors" else str(name)
            yield from field_errors(item, f"{path}.{segment}".strip("."))


def headers_of(exc: exceptions.APIException | DomainError) -> dict[str, str]:
    """Return the headers that an error needs: WWW-Authenticate and Retry-After, if any."""
    headers = {}
    if auth_header := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = auth_header
    if isinstance(exc, NotSignedIn):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(exc, TooMany):
        headers["Retry-After"] = str(math.ceil(exc.wait_s))
    return headers


def answer(body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """Return the problem as a response; a 503 gets Retry-After if it has none."""
    headers = dict(headers or {})
    if body["status"] == 503:
        headers.setdefault("Retry-After", "5")
    return Response(body, body["status"], headers=headers, content_type=CONTENT_TYPE)


def error_page(request: HttpRequest, error: DomainError) -> HttpResponse:
    """Return the page of a refused request, with the status and headers of the error."""
    context = {"title": TITLES.get(error.status, "Refused"), "detail": error.detail, "code": error.code}
    page = render(request, "error.html", context, status=error.status)
    for name, value in headers_of(error).items():
        page[name] = value
    return page


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return the response for an unknown path: a problem below /api/, else the 404 page."""
    if not request.path.startswith("/api/"):
        return page_not_found(request, exception)
    detail = "There is no such path: see /api/docs/ for all paths."
    return JsonResponse(problem(404, "not_found", detail), status=404, content_type=CONTENT_TYPE)


def server_error(request: HttpRequest) -> HttpResponse:
    """Return the response for an internal error: a problem with the request's id below /api/, else the 500 page.

    OutOfSpace gets its own error page: Django reads a form's files before its view, so a full disk may be met here.
    """
    if isinstance(error := sys.exception(), OutOfSpace):
        return error_page(request, error)
    if not request.path.startswith("/api/"):
        # Without the request's context: what failed may be the database that it reads.
        return HttpResponse(render_to_string("500.html", {"request_id": marked(request).request_id}), status=500)
    detail = f"An internal error occurred. The log has the details of request {marked(request).request_id}."
    return JsonResponse(problem(500, "internal_error", detail), status=500, content_type=CONTENT_TYPE)
