"""W3C trace context: the caller's is passed on; without one the answer's id becomes the trace id."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serving_client import telemetry
from serving_client.reports import Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# https://www.w3.org/TR/trace-context/#traceparent-header, version 00.
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
MAX_STATE = 512


def begun(path: str, headers: Mapping[str, str], response_id: str) -> tuple[Span | None, dict[str, str]]:
    """Begin a span of the request if a collector is configured; return it, or None, and the headers for the replica."""
    if not telemetry.is_on():
        return None, trace_headers(headers, response_id)
    span = telemetry.begin(f"POST {path}", headers, http__request__method="POST", url__path=path)
    return span, telemetry.headers_of(span)


def ended(span: Span, outcome: Outcome) -> None:
    """End the request's span with the status, version, arm and response id of the outcome."""
    version, arm = outcome.version, outcome.arm
    attributes = {"adapterhub__version": version, "adapterhub__arm": arm, "adapterhub__response": outcome.response_id}
    telemetry.end(span, outcome.status, **attributes)


def trace_headers(headers: Mapping[str, str], response_id: str) -> dict[str, str]:
    """Return the caller's trace headers if they are valid, else the start of a trace whose id is `response_id`.

    `response_id` is 32 hexadecimal digits.
    """
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not TRACEPARENT.fullmatch(parent):
        return {"traceparent": f"00-{response_id}-{secrets.token_hex(8)}-00"}
    return {"traceparent": parent} | ({"tracestate": state} if 0 < len(state) <= MAX_STATE else {})
