"""Tokens of a stream: the router asks the engine for their counts, and hides them from clients that did not ask.

OpenAI's clients ask for no counts by default, and without them an answer cannot be told from an empty one.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from serving_client.router.http.engine_errors import as_openai
from serving_client.router.reporting.usage import Usage, usage_in
from serving_client.router.request_fields import CHAT, COMPLETIONS, Body

EVENT_END = re.compile(rb"\r?\n\r?\n")
# An event of more bytes is passed on as it comes: its end is not awaited.
MOST_EVENT_BYTES = 2**20
# An engine sends a part for each token or for a few; an empty text is a role, or a character's first bytes.
HOLDS_TEXT = re.compile(rb'"(?:content|text|reasoning|reasoning_content|arguments|refusal|delta)": ?"[^"]')
FAILED = re.compile(rb'data: ?\{"error"')
RESPONSE_FAILED = re.compile(rb"event: ?(?:error|response\.failed)\b")
ERROR_CODE = re.compile(rb'"code": ?([45]\d\d)\b')
REFUSES_OPTIONS = re.compile(rb"stream_options|include_usage")


def is_counted(path: str, body: Body) -> bool:
    """Return True if the router must ask for token counts: a streamed completion whose client does not ask itself."""
    options = body.get("stream_options")
    if path not in (COMPLETIONS, CHAT) or body.get("stream") is not True:
        return False
    return options is None or (isinstance(options, dict) and options.get("include_usage") in (None, False))


def counted(body: Body) -> Body:
    """Return a copy of the body that requests token counts at the end of the stream only, not with every chunk.

    Its other stream options stay.
    """
    options = {**(body.get("stream_options") or {}), "include_usage": True}
    options.pop("continuous_usage_stats", None)
    return {**body, "stream_options": options}


class StreamReader:
    """Reader of a stream of server-sent events, which may hide the token counts from the client.

    It collects `usage`, the engine's token counts or None; `parts`, the number of events with text; and `failure`, the
    status of an error in the stream or None. Errors are rewritten in OpenAI's form.
    """

    def __init__(self, *, hides_usage: bool) -> None:
        self._hides_usage = hides_usage
        self._rest = b""
        self.usage: Usage | None = None
        self.parts = 0
        self.failure: int | None = None

    def read(self, chunk: bytes) -> bytes:
        """Read a chunk; return the events that are complete now, without counts if they are hidden.

        An incomplete event waits for the next chunk; one over MOST_EVENT_BYTES is passed on as it is.
        """
        content, searched_from = self._rest + chunk, max(0, len(self._rest) - 3)
        seen, start = [], 0
        for end in EVENT_END.finditer(content, searched_from):
            seen.append(self._visible(content[start : end.end()]))
            start = end.end()
        self._rest = content[start:]
        if len(self._rest) > MOST_EVENT_BYTES:
            seen.append(self.end())
        return b"".join(seen)

    def end(self) -> bytes:
        """Return what was held back: the beginning of an event that never ended."""
        rest, self._rest = self._rest, b""
        return rest

    def _visible(self, event: bytes) -> bytes:
        if HOLDS_TEXT.search(event):
            self.parts += 1
        elif FAILED.match(event):
            code = ERROR_CODE.search(event)
            self.failure = int(code[1]) if code else 502
            return b"data: " + as_openai(self.failure, event.strip().removeprefix(b"data:")) + b"\n\n"
        elif RESPONSE_FAILED.match(event):
            self.failure = 502
        if b'"usage"' not in event or (usage := usage_in(event)) is None:
            return event
        self.usage = usage
        return without_usage(event) if self._hides_usage else event


def without_usage(event: bytes) -> bytes:
    """Return an event without its counts; b"" for one that holds only them, and the event itself if it is not JSON."""
    try:
        chunk: dict[str, Any] = orjson.loads(event.strip().removeprefix(b"data:"))
    except orjson.JSONDecodeError:
        return event
    if not chunk.get("choices"):
        return b""
    chunk.pop("usage", None)
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def is_refused(status: int, content: bytes) -> bool:
    """Return True if this is an engine's refusal of the option that asks for counts."""
    return status in (400, 422) and bool(REFUSES_OPTIONS.search(content))


def visible(content: bytes) -> bytes:
    """Return a whole recorded stream without the events and fields that hold counts."""
    reader = StreamReader(hides_usage=True)
    return reader.read(content) + reader.end()
