"""Domain errors of the whole product, translated to problem JSON in one place.

DomainError
  Conflict             409  the state does not allow the operation, or another request changed it first
    InvalidTransition
  Invalid              422  the request is well-formed, but cannot be carried out
  NotAllowed           403
  NotSignedIn          401
  TooLarge             413
  TooMany              429  too many calls of one caller
  TooSlow              408  the body does not arrive
  PreconditionFailed   412  If-Match names an outdated state
  OutOfSpace           507  a disk is full
  Unavailable          503  a required component does not answer
"""

from __future__ import annotations


class DomainError(Exception):
    """The base of all domain errors, with a stable `code` and, if one field is at fault, its name.

    `errors` lists several faults as {field, code, message, route}; empty, `field` alone is at fault.
    """

    status = 400
    code = "error"

    def __init__(self, detail: str, *, field: str = "", code: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field
        self.code = code or self.code
        self.errors: list[dict[str, str]] = []


class Conflict(DomainError):
    """The state does not allow the request now."""

    status = 409
    code = "conflict"


class InvalidTransition(Conflict):
    """The object's status has no such transition."""

    code = "invalid_transition"


class PreconditionFailed(DomainError):
    """The object has changed since the caller read it."""

    status = 412
    code = "precondition_failed"


class Invalid(DomainError):
    """A field of the request has an invalid value."""

    status = 422
    code = "invalid"


class NotAllowed(DomainError):
    """The caller may not do this."""

    status = 403
    code = "not_allowed"


class NotSignedIn(DomainError):
    """Nobody who is known calls."""

    status = 401
    code = "not_authenticated"


class TooSlow(DomainError):
    """The body does not arrive."""

    status = 408
    code = "too_slow"


class TooLarge(DomainError):
    """The request's body is too large."""

    status = 413
    code = "body_too_large"


class TooMany(DomainError):
    """The caller sends more than the limit; `wait_s` says when there is room again."""

    status = 429
    code = "throttled"

    def __init__(self, detail: str, *, wait_s: float) -> None:
        super().__init__(detail)
        self.wait_s = wait_s


class OutOfSpace(DomainError):
    """A disk has no room for what was sent: 507."""

    status = 507
    code = "out_of_space"


class Unavailable(DomainError):
    """Another service that the request needs does not answer."""

    status = 503
    code = "unavailable"
