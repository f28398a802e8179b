"""The errors that the client raises."""

from __future__ import annotations

from typing import Any

import httpx


class ClientError(Exception):
    """The base class of the errors that this package raises."""


class Unreachable(ClientError):
    """Raised when no response came, even after the retries."""


class TimedOut(ClientError):
    """Raised when the awaited state did not come in time; the work continues on the server."""


class Failed(ClientError):
    """Raised when an object that was waited for did not end well; `resource` is the object as it was read last.

    Its `status` is failed, cancelled, rejected, rolled_back, discarded or erased, or it is a rollout that is paused.
    """

    def __init__(self, message: str, resource: dict[str, Any]) -> None:
        super().__init__(message)
        self.resource = resource


class ApiError(ClientError):
    """An error response, with the fields of RFC 9457 as AdapterHub sends them."""

    def __init__(self, status: int, code: str, detail: str, errors: list[dict[str, str]]) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.errors = status, code, detail, errors

    @classmethod
    def of(cls, answer: httpx.Response) -> ApiError:
        """Return the error in a response; its message is the address and status if the body is no JSON."""
        try:
            body: Any = answer.json()
        except ValueError:
            body = None
        problem = body if isinstance(body, dict) else {}
        detail = str(problem.get("detail") or f"{answer.request.url} answered {answer.status_code}.")
        return cls(answer.status_code, str(problem.get("code", "")), detail, problem.get("errors") or [])
