"""W3C trace context: the caller's is passed on; without one the answer's id is the trace's."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping

# https://www.w3.org/TR/trace-context/#traceparent-header, version 00.
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
MAX_STATE = 512


def trace_headers(headers: Mapping[str, str], response_id: str) -> dict[str, str]:
    """What the replica gets; `response_id` is 32 hex digits."""
    parent, state = headers.get("traceparent", ""), headers.get("tracestate", "")
    if not TRACEPARENT.fullmatch(parent):
        return {"traceparent": f"00-{response_id}-{secrets.token_hex(8)}-00"}
    return {"traceparent": parent} | ({"tracestate": state} if 0 < len(state) <= MAX_STATE else {})
