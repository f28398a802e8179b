"""Bounds for what an audit event holds: the trail cannot be deleted, so that nobody may fill it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

LONGEST_TEXT = 20_000
# Of before, after and evidence each, as JSON.
LARGEST_PART = 200_000
KEPT = 500


def shortened_text(text: str) -> str:
    """Return the text; if it is longer than LONGEST_TEXT, its beginning, length and sha256."""
    if len(text) <= LONGEST_TEXT:
        return text
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    return f"{text[:KEPT]}... ({len(text)} characters in all, sha256 {digest})"


def shortened(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON with long texts shortened; if it is still too large, its fields' names, size and sha256.

    None stays.
    """
    if part is None:
        return None
    short: dict[str, Any] = with_short_texts(part)
    text = json.dumps(short, default=str)
    if len(text) <= LARGEST_PART:
        return short
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"shortened": {"fields": sorted(short)[:100], "characters": len(text), "sha256": digest}}


def with_short_texts(value: Any) -> Any:
    """Return the JSON with each long text shortened."""
    if isinstance(value, str):
        return shortened_text(value)
    if isinstance(value, dict):
        return {name: with_short_texts(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_short_texts(inner) for inner in value]
    return value
