"""W3C trace context: one trace id from a request through the wake-up of its job to the process that does the work.

The trace id is always propagated; spans are exported only when a collector is configured.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar

from serving_client import telemetry

FORM = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})")

enclosing: ContextVar[str] = ContextVar("traceparent", default="")


def start(process: str) -> None:
    """If a collector is set, export the spans of this process and of the Celery tasks that it sends or runs."""
    if telemetry.is_on():
        from opentelemetry.instrumentation.celery import CeleryInstrumentor

        telemetry.start(process)
        CeleryInstrumentor().instrument()  # type: ignore[no-untyped-call]  # its constructor has no types


def continued(header: str) -> str:
    """Return the traceparent of the current span; without one, a new span in the header's trace, or in a new trace."""
    if span := telemetry.here():
        return span
    match = FORM.fullmatch(header)
    trace, flags = match.groups() if match else (secrets.token_hex(16), "00")
    return f"00-{trace}-{secrets.token_hex(8)}-{flags}"


def here() -> str:
    """Return the traceparent of the current span or request; empty outside of a trace."""
    return telemetry.here() or enclosing.get()


def nearest(traceparent: str) -> str:
    """Return the traceparent of this thread's span if it belongs to the given trace or none is given.

    Otherwise return the given traceparent.
    """
    span = telemetry.here()
    return span if not traceparent or span[:35] == traceparent[:35] else traceparent
