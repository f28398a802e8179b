"""Shortcut for steps with the same adapters as the step before: none of them is looked up again.

At every step vLLM asks for each adapter of the batch whether it is loaded, and each time copies the list of all: with
128 adapters that takes longer than the GPU's part of the step.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager


def skip_repeated_lookups() -> None:
    """Replace vLLM's update of the active adapters by one that returns at once while the adapters stay the same.

    It runs in full for a reload in place, and if one has lost its slot or another was loaded or used since.
    """
    stock = LRUCacheWorkerLoRAManager._apply_adapters

    @wraps(stock)
    def _apply_adapters(self: Any, lora_requests: set[Any]) -> None:
        adapters = frozenset(request.lora_int_id for request in lora_requests)
        reads_anew = any(request.load_inplace for request in lora_requests)
        if reads_anew or adapters != vars(self).get("_applied") or not were_last(self._adapter_manager, adapters):
            stock(self, lora_requests)
            self._applied = adapters

    LRUCacheWorkerLoRAManager._apply_adapters = _apply_adapters


def were_last(manager: Any, adapters: frozenset[int]) -> bool:
    """Return True if all adapters still have their slots and no other was loaded or used after them; False for none.

    `manager` is vLLM's manager of LoRA models, `adapters` are the numbers that it knows them by.
    """
    caches = manager._registered_adapters, manager._active_adapters
    return bool(adapters) and all(
        next(reversed(cache.order), None) in adapters and all(adapter in cache for adapter in adapters)
        for cache in caches
    )
