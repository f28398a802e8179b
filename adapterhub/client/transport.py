"""Shared parts of both clients: the request, the idempotency key, the retries, the response."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from adapterhub.client.calls import Call
from adapterhub.client.errors import ApiError

TIMEOUT_S = 60.0
ATTEMPTS = 5
# A server that wants a longer pause than this is not asked again.
LONGEST_PAUSE_S = 120.0
# Statuses of temporary refusals, the server's own and those of a proxy before it.
PASSING = (429, 502, 503, 504)


def require_address(url: str) -> None:
    """Raise ValueError, with the right form, unless the text is an http or https address and nothing beside it."""
    fault = fault_of(url)
    if fault is not None:
        # Whoever put a password into the address must not find it in a log.
        without_password = re.sub(r"//[^/@]*@", "//...@", url)
        raise ValueError(f"{without_password!r} is not an address of the form https://hub.example.org{fault}.")


def fault_of(url: str) -> str | None:
    """Return the fix of a wrong address, to follow a sentence: "" if none can be guessed, None for a right address."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return ": its host or port is wrong"
    if url != url.strip():
        return ": remove the white space around it"
    if not is_right:
        return f": write https://{url}" if url and ":/" not in url and "//" not in url else ""
    if parts.username is not None:
        return ": leave user and password out, as the token says who asks"
    if parts.query or parts.fragment:
        return ": leave out what follows ? or #"
    return ": leave /api/v1 out" if parts.path.rstrip("/").endswith("/api/v1") else None


def options(url: str, token: str) -> dict[str, Any]:
    """Return the arguments of both httpx clients: the API's address, the token's header and the timeout.

    Redirects are not followed: the token must not go elsewhere. Raises ValueError for an invalid address.
    """
    require_address(url)
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, */*;q=0.5"}
    return {"base_url": f"{url.rstrip('/')}/api/v1/", "headers": headers, "timeout": TIMEOUT_S}


def headers(call: Call[Any]) -> dict[str, str]:
    """Return a new Idempotency-Key for a POST, which all its retries share; {} for other methods."""
    return {"Idempotency-Key": uuid.uuid4().hex} if call.method == "POST" else {}


def arguments(call: Call[Any], files: ExitStack) -> dict[str, Any]:
    """Return the query and body of the request. Files are opened anew for each attempt; leaving `files` closes them."""
    parts: dict[str, Any] = {"params": dict(call.params)}
    if call.files:
        opened = {name: (path.name, files.enter_context(path.open("rb"))) for name, path in call.files.items()}
        return {**parts, "data": call.body, "files": opened}
    return parts if call.body is None else {**parts, "json": call.body}


def pause(answer: httpx.Response | None, attempt: int) -> float:
    """Return the seconds until the next attempt: Retry-After if it was sent, else 0.2, 0.4, 0.8, ..."""
    wanted = retry_after(answer) if answer is not None else None
    return 0.1 * 2**attempt if wanted is None else wanted


def retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds of Retry-After, which holds them or a time; None without either."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal() and text.isascii():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def passes(answer: httpx.Response) -> bool:
    """Return True if a retry may succeed soon: too many requests, unavailable, or the first copy is in flight."""
    is_passing = answer.status_code in PASSING
    is_passing = is_passing or (answer.status_code == 409 and ApiError.of(answer).code == "in_flight")
    return is_passing and (retry_after(answer) or 0.0) <= LONGEST_PAUSE_S


def content(answer: httpx.Response) -> Any:
    """Return the response's body: parsed if it is JSON, else its bytes.

    Raises ApiError unless the status is a success.
    """
    if not answer.is_success:
        raise ApiError.of(answer)
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
    return answer.json() if kind == "application/json" else answer.content
