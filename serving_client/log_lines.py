"""Logs of which each record is one line, whatever callers, engines or tables put into it. Pure."""

from __future__ import annotations

import argparse
import json
import logging
import re
from datetime import UTC, datetime

# Input from others must not start a line of its own, nor move a terminal's cursor.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
FORMATS = ("text", "json")


class OneLine(logging.Formatter):
    """A formatter that escapes the control characters of a message, so that no text forges a line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message with control characters escaped."""
        return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), super().formatMessage(record))


class JsonLine(logging.Formatter):
    """A formatter that writes each record as a JSON object in ASCII: time (UTC, milliseconds), level, logger, message.

    `exception` and `stack` are there where the record has them.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        fields = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"time": time, **{name: self.presented(text) for name, text in fields.items()}})

    def presented(self, text: str) -> str:
        """Return the text to write for a field, here unchanged; a subclass may hide parts of it."""
        return text


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--log-format` to a program's options."""
    parser.add_argument("--log-format", choices=FORMATS, default="text", help="how log lines are written")


def start(form: str, log_format: str = "text") -> None:
    """Log to the standard error from level INFO on, one line a record.

    `log_format` "json" writes JSON objects; else records are text in `form`, a format string of logging.
    """
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLine() if log_format == "json" else OneLine(form))
