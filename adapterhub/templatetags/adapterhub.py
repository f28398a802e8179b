"""Status as colour and word and shape; figures as people read them."""

from __future__ import annotations

from typing import Any

from django import template

register = template.Library()

TONES = {
    "good": ("✓", {"ready", "succeeded", "promoted", "healthy", "intact", "live"}),
    "bad": ("✕", {"failed", "rejected", "unreachable", "broken"}),
    "busy": ("↻", {"queued", "running", "stopping", "checking", "loading"}),
    "still": ("■", {"cancelled", "archived", "paused", "rolled back"}),
}


@register.inclusion_tag("components/badge.html")
def badge(word: object) -> dict[str, str]:
    """A status word with its colour and its shape."""
    text = str(word).lower().replace("_", " ")
    for tone, (shape, names) in TONES.items():
        if text in names:
            return {"tone": tone, "shape": shape, "word": text}
    return {"tone": "still", "shape": "•", "word": text}


@register.filter
def short(digest: str) -> str:
    """The first 12 characters of a digest."""
    return digest[:12]


@register.filter
def item(mapping: dict[str, Any], key: str) -> Any:
    """mapping[key], or nothing."""
    return mapping.get(key)
