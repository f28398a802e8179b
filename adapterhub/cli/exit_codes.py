"""The command's exit codes, and the conversion of errors to them."""

from __future__ import annotations

from enum import IntEnum

from adapterhub.cli.config import BadConfig
from adapterhub.client import ApiError, TimedOut, Unreachable


class Exit(IntEnum):
    """0 done, 1 failed or rolled back, 2 usage, 3 not allowed, 4 conflict, 5 --wait timed out, 6 a gate refused."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_ALLOWED = 3
    CONFLICT = 4
    TIMED_OUT = 5
    REFUSED = 6


class Ended(Exception):
    """Raised when a command ends other than asked; `code` is the exit code."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code


FORESEEN = (ApiError, BadConfig, Ended, OSError, TimedOut, Unreachable)
# Gates between a version and its users: signatures, evaluations, the estimate of memory.
GATES = {"alias_protected", "approval_missing", "evaluation_objects", "review_overdue", "will_not_fit"}
BY_STATUS = {
    400: Exit.USAGE,
    401: Exit.NOT_ALLOWED,
    403: Exit.NOT_ALLOWED,
    404: Exit.USAGE,
    409: Exit.CONFLICT,
    413: Exit.USAGE,
    415: Exit.USAGE,
    422: Exit.USAGE,
}


def code_of(error: Exception) -> Exit:
    """Return the exit code of an expected error."""
    match error:
        case ApiError():
            return Exit.REFUSED if error.code in GATES else BY_STATUS.get(error.status, Exit.FAILED)
        case Ended():
            return error.code
        case TimedOut():
            return Exit.TIMED_OUT
        case BadConfig() | OSError():
            return Exit.USAGE
    return Exit.FAILED


def readable_lines(error: Exception) -> list[str]:
    """Return the error as readable lines: each field that the server names, else the error's message."""
    if not isinstance(error, ApiError):
        return [str(error)]
    field_errors = [
        f"{fault['field']}: {fault['message']} {fault.get('route', '')}".rstrip()
        for fault in error.errors
        if fault.get("field")
    ]
    # The server's message already joins those of the fields.
    return field_errors or [error.detail]
