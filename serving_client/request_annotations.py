"""Fields of a completion request that change no answer: who asks and why, and what may be cached. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# Fields that say who asks; a number is taken as its text.
USERS = ("user", "safety_identifier")
TEXTS = ("prompt_cache_key", "prompt_cache_retention")
ANNOTATIONS = frozenset({"metadata", *TEXTS, *USERS})


class WrongField(NamedTuple):
    """A field of a wrong kind, and one sentence that says which kind it must be."""

    field: str
    message: str


def wrong_annotation(body: Mapping[str, Any]) -> WrongField | None:
    """Return the first field of ANNOTATIONS in the body whose value is of a wrong kind; None if there is none.

    A field that is null or missing is right. A wrong one would otherwise be dropped in silence.
    """
    for name in USERS:
        if body.get(name) is not None and type(body[name]) not in (str, int):
            return WrongField(name, f"{name} must be a text or a whole number.")
    for name in TEXTS:
        if not isinstance(body.get(name), str | None):
            return WrongField(name, f"{name} must be a text.")
    if not isinstance(body.get("metadata"), dict | None):
        return WrongField("metadata", "metadata must be an object.")
    return None
