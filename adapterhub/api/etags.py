"""ETag and If-Match: a change that was meant for an outdated state is refused with 412."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import rfc8785
from django.http import HttpRequest
from rest_framework.request import Request
from rest_framework.response import Response

from adapterhub.core.errors import Invalid, PreconditionFailed

ETAG = re.compile(r'"([!#-~]+)"')


def tag_of(state: Any) -> str:
    """Return an ETag of a JSON value: 16 hexadecimal digits of the hash of its canonical form, without quotes."""
    return hashlib.sha256(rfc8785.dumps(state)).hexdigest()[:16]


def wanted_tag(request: HttpRequest | Request) -> str:
    """Return the ETag in If-Match, without quotes; empty without the header or for `*`.

    Raises Invalid for anything but one quoted ETag, such as a weak ETag or several.
    """
    header = request.headers.get("If-Match", "").strip()
    if header in ("", "*"):
        return ""
    match = ETAG.fullmatch(header)
    if match is None:
        raise Invalid(
            'If-Match takes one ETag exactly as you received it, e.g. "3", or *.', field="If-Match", code="bad_etag"
        )
    return match.group(1)


def require_tag(record: Any, wanted: str) -> None:
    """Raise PreconditionFailed if the object's ETag is not `wanted`; an empty one passes.

    Call it while holding the lock of the change.
    """
    if wanted and record.etag != wanted:
        raise PreconditionFailed(
            f'{record} has changed in the meantime: its ETag is now "{record.etag}". Read it again.'
        )


def conditional(request: Request, record: Any, response: Response) -> Response:
    """Return the response with the ETag of `record`.

    A response of 200 becomes 304 without a body if If-None-Match names the current state.
    """
    tag = f'"{record.etag}"'
    named = {part.strip() for part in request.headers.get("If-None-Match", "").split(",")}
    if tag in named and response.status_code == 200:
        response = Response(status=304)
    response["ETag"] = tag
    return response
