"""What goes wrong between a program and AdapterHub."""

from __future__ import annotations

from typing import Any

import httpx


class ClientError(Exception):
    """The root of what this package raises."""


class Unreachable(ClientError):
    """No answer came, also after the retries."""


class TimedOut(ClientError):
    """What was waited for did not happen in time; it goes on at the server."""


class ApiError(ClientError):
    """A refusal: RFC 9457's fields as AdapterHub sends them.

    `errors` is a list of {field, code, message}; `code` is stable, `detail` is for people.
    """

    def __init__(self, status: int, code: str, detail: str, errors: list[dict[str, str]]) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.errors = status, code, detail, errors

    @classmethod
    def of(cls, answer: httpx.Response) -> ApiError:
        """The error that an answer tells, also when a proxy wrote it."""
        try:
            body: Any = answer.json()
        except ValueError:
            body = None
        told = body if isinstance(body, dict) else {}
        detail = str(told.get("detail") or f"{answer.request.url} answered {answer.status_code}.")
        return cls(answer.status_code, str(told.get("code", "")), detail, told.get("errors") or [])
