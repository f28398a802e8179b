"""A log formatter that removes secrets from every line, tracebacks included."""

from __future__ import annotations

import logging
import re

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


# Input from users must not start a line of its own, nor move a terminal's cursor.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def redacted(text: str) -> str:
    """Return the text with tokens, private keys, and passwords in URLs and fields replaced."""
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class Redacting(logging.Formatter):
    """A log formatter that hides secrets in the finished text, so that arguments and tracebacks are covered too.

    Control characters of a message are escaped: it stays one line.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message with control characters escaped, so that no text forges a line of the log."""
        return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record without secrets."""
        return redacted(super().format(record))
