"""Memory of adapter slots: before any load, engines reserve each slot at the highest rank for every linear module."""

from __future__ import annotations

from adapterhub.core.counts import counted
from adapterhub.core.errors import Invalid
from registry.models import Cluster
from serving_client.vllm_slots import VLLM_RANKS

MIB = 2**20


def require_memory(cluster: Cluster, memory: int, number_bytes: int) -> int:
    """Return the bytes that a replica's slots take together.

    `number_bytes` is the size of one number. Raises Invalid, with what would fit, if they exceed `memory` bytes.
    """
    base, rank, slots = cluster.base_model, cluster.max_lora_rank, cluster.max_loras
    one = base.slot_bytes(rank, number_bytes)
    if slots * one <= memory:
        return slots * one
    lower = [
        rank
        for rank in VLLM_RANKS
        if rank < cluster.max_lora_rank and slots * base.slot_bytes(rank, number_bytes) <= memory
    ]
    fits = f"{counted(memory // one, 'slot')} of rank {rank}" + (f", or {slots} of rank {lower[-1]}" if lower else "")
    raise Invalid(
        f"{counted(slots, 'slot')} of rank {rank} for {base} take{'s' * (slots == 1)} "
        f"{slots * one / MIB:,.1f} MiB a replica, {one / MIB:,.1f} MiB each; {memory / MIB:,.1f} MiB hold {fits}.",
        field="max_loras",
        code="too_little_memory",
    )
