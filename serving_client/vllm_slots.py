"""Adapter slots of vLLM: the ranks that one may have, and its memory. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

# What --max-lora-rank takes.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
BFLOAT16_BYTES = 2


def slot_bytes(shapes: Iterable[Sequence[int]], rank: int, number_bytes: int = BFLOAT16_BYTES) -> int:
    """Return the bytes of one slot: A and B at this rank for each linear module; `shapes` are their (out, in)."""
    return rank * number_bytes * sum(map(sum, shapes))
