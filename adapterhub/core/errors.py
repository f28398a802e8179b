"""Domain errors of the whole product, translated to problem JSON in one place.

DomainError
  Conflict             409  the state does not allow the operation, or another request changed it first
    InvalidTransition
    NoProject               the installation has no project yet
  Invalid              422  the request is well-formed, but cannot be carried out
  NotAllowed           403
  NotSignedIn          401
  TooLarge             413
  TooMany              429  too many calls of one caller
  TooSlow              408  the body does not arrive
  UnsupportedCharset   415  the body is in another character set than UTF-8
  HeaderTooLong        431
  PreconditionFailed   412  If-Match names an outdated state
  OutOfSpace           507  a disk is full
  Unavailable          503  a required component does not answer
"""

from __future__ import annotations


class DomainError(Exception):
    """The base of all domain errors, with a stable `code` and, if one field is wrong, its name as `field`.

    `errors` lists several faults as {field, code, message, route}; it is empty if there is only one.
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
    """Raised if the present state does not allow the request: 409."""

    status = 409
    code = "conflict"


class InvalidTransition(Conflict):
    """Raised if the object's status does not allow this transition: 409."""

    code = "invalid_transition"


class NoProject(Conflict):
    """Raised if the installation has no project yet and this caller may create one: 409."""

    code = "no_project"


class PreconditionFailed(DomainError):
    """Raised if the object has changed since the caller read it: 412."""

    status = 412
    code = "precondition_failed"


class Invalid(DomainError):
    """Raised if a request is well-formed but cannot be carried out, most often for a field's value: 422."""

    status = 422
    code = "invalid"


class NotAllowed(DomainError):
    """Raised if the caller may not do this: 403."""

    status = 403
    code = "not_allowed"


class NotSignedIn(DomainError):
    """Raised if the caller has neither a valid session nor a valid token: 401."""

    status = 401
    code = "not_authenticated"


class TooSlow(DomainError):
    """Raised if the request's body does not arrive in time: 408."""

    status = 408
    code = "too_slow"


class UnsupportedCharset(DomainError):
    """Raised if the request's body is in another character set than UTF-8: 415."""

    status = 415
    code = "unsupported_charset"


class HeaderTooLong(DomainError):
    """Raised if a header of the request is too long: 431."""

    status = 431
    code = "header_too_long"


class TooLarge(DomainError):
    """Raised if the request's body is too large: 413."""

    status = 413
    code = "body_too_large"


class TooMany(DomainError):
    """Raised if the caller sends more than the limit: 429.

    `wait_s` is the number of seconds until there is room again.
    """

    status = 429
    code = "throttled"

    def __init__(self, detail: str, *, wait_s: float) -> None:
        super().__init__(detail)
        self.wait_s = wait_s


class OutOfSpace(DomainError):
    """Raised if a disk has no room for what was sent: 507."""

    status = 507
    code = "out_of_space"


class Unavailable(DomainError):
    """Raised if another service that the request needs does not answer: 503."""

    status = 503
    code = "unavailable"
