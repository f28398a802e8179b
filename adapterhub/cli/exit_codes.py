"""The command's exit codes, and the conversion of errors to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from adapterhub.cli.config import BadConfig
from adapterhub.client import ApiError, Failed, TimedOut, Unreachable


class Exit(IntEnum):
    """The exit codes of the command line.

    0 done, 1 failed or rolled back, 2 usage, 3 not allowed, 4 conflict, 5 --wait timed out, 6 a gate refused, 7 the
    rollout is paused, 8 people must sign or approve first.
    """

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_ALLOWED = 3
    CONFLICT = 4
    TIMED_OUT = 5
    REFUSED = 6
    PAUSED = 7
    UNSIGNED = 8


class Ended(Exception):
    """Raised to end a command with a message and the exit code `code`.

    `faults` are the single errors, {field, code, message}, and `resource` is the REST object that it is about.
    """

    def __init__(
        self,
        message: str,
        code: Exit = Exit.FAILED,
        *,
        faults: Sequence[Mapping[str, Any]] = (),
        resource: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.faults, self.resource = code, faults, resource


FORESEEN = (ApiError, BadConfig, Ended, Failed, OSError, TimedOut, Unreachable)
# Gates between a version and its users: signatures, evaluations, the estimate of memory.
GATES = {"alias_protected", "approval_missing", "evaluation_objects", "review_overdue", "will_not_fit"}
BY_STATUS = {
    400: Exit.USAGE,
    401: Exit.NOT_ALLOWED,
    403: Exit.NOT_ALLOWED,
    404: Exit.USAGE,
    409: Exit.CONFLICT,
    412: Exit.CONFLICT,
    413: Exit.USAGE,
    415: Exit.USAGE,
    422: Exit.USAGE,
}


def code_of(error: Exception) -> Exit:
    """Return the exit code of an expected error."""
    match error:
        case ApiError():
            return code_of_refusal(error.code, error.status)
        case Failed():
            return Exit.PAUSED if error.resource["status"] == "paused" else Exit.FAILED
        case Ended():
            return error.code
        case TimedOut():
            return Exit.TIMED_OUT
        case BadConfig() | OSError():
            return Exit.USAGE
    return Exit.FAILED


def code_of_refusal(code: str, status: int) -> Exit:
    """Return the exit code for the server's refusal: REFUSED for a `code` of a gate, else by the HTTP status."""
    return Exit.REFUSED if code in GATES else BY_STATUS.get(status, Exit.FAILED)


def as_object(error: Exception) -> dict[str, Any]:
    """Return the error as --json prints it: `error` with message and codes, and the `resource` if there is one."""
    code = code_of(error)
    answer: dict[str, Any] = {"message": "\n".join(readable_lines(error)), "code": code.name.lower(), "exit_code": code}
    match error:
        case ApiError():
            answer |= {"code": error.code or answer["code"], "status": error.status, "errors": error.errors}
        case Ended():
            answer |= {"errors": list(error.faults)} if error.faults else {}
    resource = getattr(error, "resource", None)
    return {"error": answer, **({"resource": resource} if resource else {})}


def readable_lines(error: Exception) -> list[str]:
    """Return the error as lines: one for each field that the server names, else the error's message."""
    if not isinstance(error, ApiError):
        return [str(error)]
    field_errors = [
        f"{fault['field']}: {fault['message']} {fault.get('route', '')}".rstrip()
        for fault in error.errors
        if fault.get("field")
    ]
    # The server's message already joins those of the fields.
    return field_errors or [error.detail]
