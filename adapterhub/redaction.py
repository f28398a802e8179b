"""Log formatters that remove secrets from every line, tracebacks included."""

from __future__ import annotations

import logging
import re

from serving_client.log_lines import JsonLine, OneLine

PATTERNS = (
    # A token's id is no secret and says which one to revoke.
    (re.compile(r"\b(ah_[a-z0-9]{12})_[\w-]{20,}"), r"\1_[hidden]"),
    (re.compile(r"(?i)\b(bearer|basic)\s+(?!ah_)[\w.~+/=-]{8,}"), r"\1 [hidden]"),
    (re.compile(r"(?<=://)([^\s:/@]*):[^\s/@]+@"), r"\1:[hidden]@"),
    (
        re.compile(
            r"(?i)((?:password|passwd|secret(?:[_-]?key)?|aws_secret_access_key|client_secret)['\"]?\s*[=:]\s*['\"]?)"
            r"[^\s'\"&,;]{4,}"
        ),
        r"\1[hidden]",
    ),
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        "[hidden private key]",
    ),
)


def redacted(text: str) -> str:
    """Return the text with tokens, private keys, and passwords in URLs and fields replaced."""
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class Redacting(OneLine):
    """A formatter that hides secrets in the finished line, so that arguments and tracebacks are covered too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record without secrets."""
        return redacted(super().format(record))


class RedactingJson(JsonLine):
    """A formatter that hides secrets in each field, before JSON escapes what they are recognised by."""

    def presented(self, text: str) -> str:
        """Return the text without secrets."""
        return redacted(text)
