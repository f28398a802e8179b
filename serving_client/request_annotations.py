"""Fields of a completion request that change no answer: who asks and why, and what may be cached. Pure."""

from __future__ import annotations

ANNOTATIONS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)
