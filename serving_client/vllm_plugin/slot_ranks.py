"""The rank of what lies in each slot, so that an adapter costs its own rank and not `--max-lora-rank`.

vLLM pads every slot to the highest rank with zeros and keeps no ranks. Here they lie on the GPU beside the slots, found
by the address of a module's weights, which stays the same as long as the module.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from vllm.lora import layers
from vllm.lora.layers import BaseLayerWithLoRA, LogitsProcessorWithLoRA, VocabParallelEmbeddingWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

FOLLOWED = (BaseLinearLayerWithLoRA, LogitsProcessorWithLoRA, VocabParallelEmbeddingWithLoRA)
_tables: dict[int, torch.Tensor] = {}


def ranks_of(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the ranks (slices, slots) in the slots of the module whose stacked A or B are `weights`.

    None if the module's ranks are not noted.
    """
    return _tables.get(weights[0].data_ptr())


def follow_ranks() -> None:
    """Wrap the methods with which vLLM's LoRA layers create, fill and clear slots, so that they also note the ranks."""
    hooks: dict[str, Callable[..., None]] = {
        "create_lora_weights": _created,
        "set_lora": _filled,
        "reset_lora": _cleared,
    }
    kinds = {kind for kind in vars(layers).values() if isinstance(kind, type) and issubclass(kind, BaseLayerWithLoRA)}
    for kind in kinds | set(FOLLOWED):
        for name in hooks.keys() & vars(kind).keys():
            setattr(kind, name, _then(vars(kind)[name], hooks[name]))


def _then(method: Callable[..., None], hook: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def both(self: Any, *args: Any, **fields: Any) -> None:
        method(self, *args, **fields)
        hook(self, *args, **fields)

    return both


def _created(self: Any, max_loras: int, lora_config: Any, model_config: Any = None) -> None:
    # S-LoRA's sharding cuts ranks into parts.
    if not isinstance(self, FOLLOWED) or lora_config.fully_sharded_loras:
        return
    stacked = _slices(self.lora_b_stacked)
    table = torch.zeros(len(stacked), max_loras, dtype=torch.int32, device=stacked[0].device)
    self._slot_ranks = table
    for weights in (_slices(self.lora_a_stacked), stacked):
        address = weights[0].data_ptr()
        _tables[address] = table
        weakref.finalize(self, _forget, address, table)


def _filled(self: Any, index: int, lora_a: Any, lora_b: Any) -> None:
    table = vars(self).get("_slot_ranks")
    if table is None:
        return
    ranks = [0 if part is None else part.shape[0] for part in _slices(lora_a)]
    # A packed group that covers several slices.
    ranks = ranks if len(ranks) == len(table) else [max(ranks)] * len(table)
    table[:, index].copy_(torch.tensor(ranks, dtype=torch.int32))


def _cleared(self: Any, index: int) -> None:
    table = vars(self).get("_slot_ranks")
    if table is not None:
        table[:, index].zero_()


def _slices(weights: Any) -> Sequence[Any]:
    return (weights,) if isinstance(weights, torch.Tensor) else weights


def _forget(address: int, table: torch.Tensor) -> None:
    if _tables.get(address) is table:
        del _tables[address]
