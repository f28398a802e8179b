"""W3C trace context: one trace id from a request through the wake-up of its job to the process that does the work."""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")

current: ContextVar[str] = ContextVar("traceparent", default="")


def continued(given: str) -> str:
    """A span of our own in the caller's trace, or in a new one when the header names none."""
    found = FORM.fullmatch(given)
    trace, flags = found.groups() if found else (secrets.token_hex(16), "00")
    return f"00-{trace}-{secrets.token_hex(8)}-{flags}"
