"""Domain errors of the whole product, translated to problem JSON in one place.

DomainError
  Conflict             409  the state does not allow the operation, or another request changed it first
    InvalidTransition
  Invalid              422  the request is well-formed, but cannot be carried out
  NotAllowed           403
  TooLarge             413
  TooMany              429  too many calls of one caller
  PreconditionFailed   412  If-Match names an outdated state
  Unavailable          503  a required component does not answer
"""

from __future__ import annotations


class DomainError(Exception):
    """The base of all domain errors, with a stable `code` and, if one field is at fault, its name."""

    status = 400
    code = "error"

    def __init__(self, detail: str, *, field: str = "", code: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.code = code or self.code


class Conflict(DomainError):
    status = 409
    code = "conflict"


class InvalidTransition(Conflict):
    code = "invalid_transition"


class PreconditionFailed(DomainError):
    status = 412
    code = "precondition_failed"


class Invalid(DomainError):
    status = 422
    code = "invalid"


class NotAllowed(DomainError):
    status = 403
    code = "not_allowed"


class TooLarge(DomainError):
    status = 413
    code = "body_too_large"


class TooMany(DomainError):
    status = 429
    code = "throttled"

    def __init__(self, detail: str, *, wait_s: float) -> None:
        super().__init__(detail)
        self.wait_s = wait_s


class Unavailable(DomainError):
    status = 503
    code = "unavailable"
