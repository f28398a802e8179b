"""Attention within each sequence of packed rows on a GPU, by torch's variable-length flash kernel.

With a mask instead, cuDNN would build kernels for seconds each time that it meets a new row length.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

WITHIN_BOUNDS = "within_bounds"
OLDEST_WITH_FLASH = (8, 0)
KERNEL_TYPES = (torch.bfloat16, torch.float16)


def has_kernel() -> bool:
    """Return True if there is a GPU for torch's own flash attention, of compute capability OLDEST_WITH_FLASH or up."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= OLDEST_WITH_FLASH


def attend_within_bounds(model: Any) -> None:
    """Make a model that uses torch's sdpa attention use `attend`; no effect on other models."""
    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(WITHIN_BOUNDS, attend)
        AttentionMaskInterface.register(WITHIN_BOUNDS, sdpa_mask)
        model.set_attn_implementation(WITHIN_BOUNDS)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Return the attention of each token to its own sequence alone, and None in place of the attention weights.

    The query, key and value are (1, heads, tokens, size), the result (1, tokens, heads, size). `cu_seq_lens_q`
    (sequences + 1,) holds the start of each sequence and the end of the last. Without it, or for a dtype that the
    kernel does not take, torch's own attention computes the result.
    """
    dtype = computed_in(query)
    if cu_seq_lens_q is None or dtype not in KERNEL_TYPES:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **rest)
    groups = query.shape[1] // key.shape[1]
    parts = [part[0].transpose(0, 1).to(dtype) for part in (query, repeat_kv(key, groups), repeat_kv(value, groups))]
    answer: Any = varlen_attn(
        parts[0],
        parts[1],
        parts[2],
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
    )
    return answer[None], None


def computed_in(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype in which autocast computes on the tensor's device, or without autocast the tensor's.

    Autocast converts the inputs of torch's own attention alone.
    """
    place = tensor.device.type
    return torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else tensor.dtype
