"""W3C trace context: one trace id from a request through the wake-up of its job to the process that does the work.

It goes along always; spans are told only where a collector is named.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

from serving_client import telemetry

FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")

asked: ContextVar[str] = ContextVar("traceparent", default="")


def start(process: str) -> None:
    """Tell spans of this process and of the Celery tasks that it sends or runs."""
    if telemetry.is_on():
        from opentelemetry.instrumentation.celery import CeleryInstrumentor

        telemetry.start(process)
        CeleryInstrumentor().instrument()


def continued(given: str) -> str:
    """A span of our own in the caller's trace, or in a new one when the header names none."""
    if span := telemetry.here():
        return span
    found = FORM.fullmatch(given)
    trace, flags = found.groups() if found else (secrets.token_hex(16), "00")
    return f"00-{trace}-{secrets.token_hex(8)}-{flags}"


def here() -> str:
    """The traceparent of what is being done; empty when nobody asked for it."""
    return telemetry.here() or asked.get()


def nearest(traceparent: str) -> str:
    """The span that this thread is in if it belongs to the same trace, else the one given, if any."""
    span = telemetry.here()
    return span if not traceparent or span[:35] == traceparent[:35] else traceparent
