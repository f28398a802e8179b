"""Errors of the router in OpenAI's format."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}
# The rest of such a request's body is not worth reading.
BODY_UNREAD = {401, 405, 408, 413, 415}


class Refusal(Exception):
    """An error response: HTTP status, stable code, one sentence, and what else a client can act on.

    `param` is the field of the body at fault, `retry_after_s` the seconds after which to try again; each may be None.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.param, self.retry_after_s = param, retry_after_s

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        """Return the refusal as a response in OpenAI's error JSON; `headers` are added to its own."""
        all_headers = dict(headers or {})
        if self.retry_after_s:
            all_headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            all_headers["WWW-Authenticate"] = "Bearer"
        if self.status in BODY_UNREAD:
            all_headers["Connection"] = "close"
        content = error_json(self.status, self.code, self.message, self.param)
        return Response(content, self.status, all_headers, "application/json")


def error_json(status: int, code: str | None, message: str, param: str | None = None) -> bytes:
    """Return an error as OpenAI's JSON; `param` is the field that it is about."""
    error = {"message": message, "type": TYPES.get(status, "server_error"), "param": param, "code": code}
    return orjson.dumps({"error": error})
