"""Errors of the router in OpenAI's format."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}
# The rest of such a request's body is not worth reading.
BODY_UNREAD = {401, 405, 408, 413}


class Refusal(Exception):
    """An error response: HTTP status, stable code, one sentence, and seconds until a retry makes sense."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.retry_after_s = status, code, message, retry_after_s

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the refusal as OpenAI error JSON, with the given headers of the answer that it replaces."""
        error = {
            "message": self.message,
            "type": TYPES.get(self.status, "server_error"),
            "param": None,
            "code": self.code,
        }
        all_headers = dict(headers or {})
        if self.retry_after_s:
            all_headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            all_headers["WWW-Authenticate"] = "Bearer"
        if self.status in BODY_UNREAD:
            all_headers["Connection"] = "close"
        return Response(orjson.dumps({"error": error}), self.status, all_headers, "application/json")
