"""Conversion of engines' various error bodies to OpenAI's form."""

from __future__ import annotations

import re
from typing import Any

import orjson

from serving_client.router.errors import error_json

TOO_LONG = re.compile(r"maximum (context|model) length|longer than the (model's )?context|max_model_len", re.IGNORECASE)
WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\s-]+")
LONGEST_MESSAGE = 4000
# A longer error is not parsed.
MOST_PARSED_BYTES = 2**16


def as_openai(status: int, content: bytes) -> bytes:
    """Return an engine's error body as OpenAI's error JSON, with its message, code and the field that it is about."""
    error = parsed(content)
    message = (
        message_in(error)
        or content[:MOST_PARSED_BYTES].decode(errors="replace").strip()
        or "The engine refused the request."
    )
    param = error.get("param")
    code = "context_length_exceeded" if TOO_LONG.search(message) else code_of(error)
    return error_json(status, code, message[:LONGEST_MESSAGE], param if isinstance(param, str) else None)


def parsed(content: bytes) -> dict[str, Any]:
    """Return the error object of a body: that under `error`, or the whole body; {} if it is not JSON, or very long.

    An error that is no object becomes its `message`.
    """
    if len(content) > MOST_PARSED_BYTES:
        return {}
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    error = body.get("error", body) if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {"message": error}


def message_in(error: dict[str, Any]) -> str:
    """Return the message, or the `detail` that FastAPI's engines give, as text; "" without any."""
    for name in ("message", "detail"):
        if value := error.get(name):
            return value if isinstance(value, str) else orjson.dumps(value).decode()
    return ""


def code_of(error: dict[str, Any]) -> str | None:
    """Return the engine's own code if it is a word, else one made of its type; None without either.

    The type BadRequestError becomes `bad_request`.
    """
    code, kind = error.get("code"), error.get("type")
    if isinstance(code, str) and not code.isdigit():
        return code
    return WORD_START.sub("_", kind.removesuffix("Error")).lower() if isinstance(kind, str) and kind else None
