"""The entry point that vLLM calls in each of its processes."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from typing import Any

from serving_client.vllm_plugin import NAME, VERSION, releases

# Below vLLM's own logger, which prints in every process.
logger = logging.getLogger("vllm.adapterhub")

CAPABILITY = (8, 0)  # bfloat16 in Triton
SHRINK = (
    "inputs",
    "lora_a_weights",
    "output_tensor",
    "token_lora_mapping",
    "token_indices_sorted_by_lora_ids",
    "num_tokens_per_lora",
    "lora_token_start_loc",
    "lora_ids",
    "no_lora_flag_cpu",
    "num_active_loras",
    "scaling",
)
EXPAND = ("inputs", "lora_b_weights", *SHRINK[2:-1], "offset_start", "add_inputs")
METADATA = ("self", "token_nums", "specialize_active_lora")

_is_registered = False


def register() -> None:
    """Install the row kernels, or log in one line why vLLM's own kernels run. A second call changes nothing."""
    global _is_registered
    if _is_registered:
        return
    _is_registered = True
    if reason := refusal():
        logger.warning("%s is off, vLLM's own LoRA kernels run: %s", NAME, reason)
        return
    install()
    logger.info("%s %s: decode batches multiply each row with its own adapter", NAME, VERSION)


def refusal() -> str | None:
    """Return the reason, for the log, why this process must run vLLM's own kernels; None if the row kernels may run."""
    import vllm

    takes_unmeasured = os.environ.get(releases.SETTING, "0") == "1"
    return releases.refusal(vllm.__version__, takes_unmeasured=takes_unmeasured) or unfit_machine() or changed_code()


def unfit_machine() -> str | None:
    """Return the reason for which this machine cannot run the kernels; None if it can."""
    from vllm import envs
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    if not current_platform.is_cuda():
        return "there is no CUDA GPU"
    if not current_platform.has_device_capability(CAPABILITY):
        return f"the GPU's compute capability is below {CAPABILITY[0]}.{CAPABILITY[1]}"
    if not HAS_TRITON:
        return "Triton is missing or finds no driver; install the triton that this vLLM pins"
    if envs.VLLM_BATCH_INVARIANT:
        return "VLLM_BATCH_INVARIANT=1 wants one kernel for batches of every size; unset it to use row kernels"
    return None


def changed_code() -> str | None:
    """Return which of vLLM's functions has other parameters than the operators expect; None if all are as expected."""
    from vllm.lora.ops.triton_ops.lora_expand_op import _lora_expand
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
    from vllm.lora.ops.triton_ops.lora_shrink_op import _lora_shrink

    for function, expected in ((_lora_shrink, SHRINK), (_lora_expand, EXPAND), (LoRAKernelMeta.meta_args, METADATA)):
        if parameters(function) != expected:
            return f"{function.__qualname__} has parameters that are unknown to {NAME} {VERSION}; install a newer one"
    return None


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of the function's parameters."""
    return tuple(inspect.signature(function).parameters)


def install() -> None:
    """Replace vLLM's operators and hooks by those of the plugin, in this process."""
    import torch
    from vllm.lora.punica_wrapper import punica_gpu

    from serving_client.vllm_plugin import adapters_in_use, linear, operators, slot_ranks

    operators.register()
    punica_gpu.lora_shrink = torch.ops.adapterhub.lora_shrink
    punica_gpu.lora_expand = torch.ops.adapterhub.lora_expand
    linear.replace_apply()
    linear.follow_batches()
    slot_ranks.follow_ranks()
    adapters_in_use.skip_repeated_lookups()
    mark_compile_cache()


def mark_compile_cache() -> None:
    """Add the plugin's name and version to the key of vLLM's compiled graphs.

    Without it a graph that was compiled without the plugin would be loaded, and run vLLM's own operators in silence.
    """
    from vllm import envs

    factors: Callable[[], dict[str, object]] = envs.compile_factors

    def compile_factors() -> dict[str, object]:
        return factors() | {NAME: VERSION}

    envs.compile_factors = compile_factors
