"""Heads of requests, checked before any code parses them: the length of each header, and the body's character set.

Parsers of headers take the square of a header's length, and some of Python's character sets that of the body's.
"""

from __future__ import annotations

from typing import Any

from django.utils.http import parse_header_parameters

from adapterhub.core.errors import HeaderTooLong, UnsupportedCharset

LONGEST_HEADER, LONGEST_CONTENT_TYPE = 8192, 512
CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")


def require_head(scope: dict[str, Any]) -> None:
    """Check the headers of an ASGI request.

    Raises HeaderTooLong, and UnsupportedCharset for a character set that is neither UTF-8 nor ASCII.
    """
    for name, value in scope["headers"]:
        longest = LONGEST_CONTENT_TYPE if name == b"content-type" else LONGEST_HEADER
        if len(value) > longest:
            header = name[:50].decode("latin-1")
            raise HeaderTooLong(f"The header {header} may have {longest:,} bytes: shorten it.")
        if name == b"content-type":
            require_charset(value.decode("latin-1"))


def require_charset(content_type: str) -> None:
    """Raise UnsupportedCharset if a Content-Type names a character set that is neither UTF-8 nor ASCII."""
    try:
        charset = parse_header_parameters(content_type)[1].get("charset", CHARSETS[0])
    except ValueError:
        charset = ""
    if charset.strip().lower() not in CHARSETS:
        raise UnsupportedCharset("A body is read as UTF-8 alone: send it so, or leave the charset out.")
