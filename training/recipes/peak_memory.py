"""Peak memory of a training, and advice on reducing it after running out of memory.

It uses torch only if it is loaded already.
"""

from __future__ import annotations

import sys
from pathlib import Path

from training.recipes.run_file import Hyperparameters

GB = 1e9


def peak_memory() -> int:
    """Return the peak memory in bytes.

    It is what torch allocated on the GPU, or, without torch or a GPU, the peak of this process.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return own_peak()


def own_peak() -> int:
    """Return this process's peak memory in bytes (Linux's VmHWM).

    getrusage would include the memory that its parent had at the time of the fork.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def out_of_memory(chosen: Hyperparameters, method: str) -> str:
    """Return the error message of a run that ran out of memory, with its figures and the change that costs least."""
    size = f"{chosen.batch_size} sequences of up to {chosen.max_length} tokens"
    return f"Memory ran out at {peak_memory() / GB:.2f} GB with {size}. {advice(chosen, method)} Then clone the run."


def advice(chosen: Hyperparameters, method: str) -> str:
    """Return a sentence that names the cheapest change that needs less memory.

    In this order: half the batch at the same step, recomputation of activations, shorter rows, then another method or
    model.
    """
    if chosen.batch_size > 1:
        half, twice = chosen.batch_size // 2, chosen.gradient_accumulation * 2
        return f"Set batch_size {half} and gradient_accumulation {twice}: the same step with less memory."
    if not chosen.recompute:
        return "Set recompute 1: activations are computed again, not kept."
    if chosen.max_length > 512:
        return f"Set max_length {chosen.max_length // 2}."
    if method in ("qlora", "dpo", "kto", "orpo"):
        return "Take a smaller base model."
    return "Take method qlora: the base in 4 bits."
