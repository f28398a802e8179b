"""Logs of which each record is one line, whatever callers, engines or tables put into it. Pure."""

from __future__ import annotations

import logging
import re

# Input from others must not start a line of its own, nor move a terminal's cursor.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class OneLine(logging.Formatter):
    """A formatter that escapes the control characters of a message, so that no text forges a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message with control characters escaped."""
        return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), super().formatMessage(record))


def start(form: str) -> None:
    """Log to the standard error, in this form of logging's, from level INFO on."""
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(OneLine(form))
