"""vLLM on the CPU: a row of the base model in a mixed batch gets no adapter's contribution.

The CPU's LoRA operations read slot -1, the last one, for rows that have no adapter (vLLM 0.32; its GPU kernels skip
them). Zeroing what those rows were shrunk to is enough, because what follows is linear in it.
"""

from __future__ import annotations

import sys
from typing import Any

NO_ADAPTER = -1


def register() -> None:
    """Called by vLLM in each of its processes; a second call changes nothing."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops

    if not hasattr(lora_ops.bgmv_shrink, "skips_base_rows"):
        fixed = skipping(lora_ops.bgmv_shrink)
        for module in (lora_ops, torch_ops, sys.modules.get("vllm.lora.punica_wrapper.punica_cpu")):
            if module is not None:
                module.bgmv_shrink = fixed


def skipping(shrink: Any) -> Any:
    def bgmv_shrink(inputs: Any, weights: Any, output: Any, slots: Any, scaling: float = 1.0) -> None:
        shrink(inputs, weights, output, slots, scaling)
        output[: slots.shape[0]].masked_fill_((slots == NO_ADAPTER).unsqueeze(1), 0)

    bgmv_shrink.skips_base_rows = True
    return bgmv_shrink
