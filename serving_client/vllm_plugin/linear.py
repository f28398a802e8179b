"""vLLM's linear layers with LoRA: the adapters' update runs beside the base model's product."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
from vllm.lora.punica_wrapper.punica_gpu import PunicaWrapperGPU
from vllm.model_executor.custom_op import maybe_get_oot_by_class
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)

from serving_client.vllm_plugin import operators

Apply = Callable[..., torch.Tensor]


def replace_apply() -> None:
    """Replace `apply` of vLLM's LoRA layers whose forward is a matrix product and nothing else; leave the others.

    Layers that shard A and B as S-LoRA does have an `apply` of their own, which stays.
    """
    plain = tuple(
        maybe_get_oot_by_class(kind)
        for kind in (ColumnParallelLinear, MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear)
    )
    for layer in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA):
        layer.apply = beside_the_base(layer.apply, plain)


def follow_batches() -> None:
    """Replace vLLM's `update_metadata` by one that also tells the operators whether each new batch only decodes."""
    stock = PunicaWrapperGPU.update_metadata

    @wraps(stock)
    def update_metadata(self: Any, mapping: Any, *args: Any, **fields: Any) -> None:
        stock(self, mapping, *args, **fields)
        decodes = len(mapping.index_mapping) == len(mapping.prompt_mapping)
        operators.note_batch(self.token_mapping_meta.token_lora_mapping, decodes=decodes)

    PunicaWrapperGPU.update_metadata = update_metadata


def beside_the_base(stock: Apply, plain: tuple[type, ...]) -> Apply:
    """Return a function in place of vLLM's `apply`: it computes the adapters' update beside the base layer's product.

    Layers of other kinds than `plain` are left to `stock`.
    """

    @wraps(stock)
    def apply(self: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if type(self.base_layer) not in plain:
            return stock(self, x, bias)
        wrapper = self.punica_wrapper
        rows = x.flatten(0, 1) if x.ndim == 3 else x
        batch = wrapper.token_mapping_meta.meta_args(rows.size(0), wrapper.lora_config.specialize_active_lora)
        slots, _, _, _, active, has_none, _ = batch
        weights = self.lora_a_stacked, self.lora_b_stacked
        update = torch.ops.adapterhub.lora_update_aside(rows, *weights, slots, active, has_none)
        output: torch.Tensor = self._get_quant_method().apply(self.base_layer, x, bias)
        outputs = output.flatten(0, 1) if output.ndim == 3 else output
        torch.ops.adapterhub.lora_add_joined(update, outputs, rows, *weights, *batch)
        return output

    return apply
