"""Coordination of a run's processes: which one reports, and how they agree to stop."""

from __future__ import annotations

import os
import signal
from typing import Any

import torch
from accelerate import PartialState

from serving_client.parent_death import die_with_parent
from training.lm.base_model import on_gpu
from training.lm.error_reporting import BadInput
from training.recipes.entrypoint import RunEvents
from training.recipes.run_file import Run


def join(run: Run, events: RunEvents) -> PartialState:
    """Set up this process' device and rank and return their state.

    On all but the first process, `events` is silenced to errors only. With several devices the process also dies with
    its launcher. Raises BadInput for another number of processes than the run's devices.
    """
    if run.devices > 1:
        end_with_launcher()
    state = PartialState(cpu=not on_gpu())
    if state.num_processes != run.devices:
        raise BadInput(f"devices: the run wants {run.devices} processes, but {state.num_processes} were launched.")
    events.silent = not state.is_main_process
    return state


def end_with_launcher() -> None:
    """Ask Linux to kill this process with the launcher: it has its own session, so a group kill misses it."""
    # Without a launcher that died before this line nothing can be joined: the processes meet in it.
    if arm := die_with_parent(signal.SIGKILL, parent=os.getppid()):
        arm()


def anyone(requested: bool, state: PartialState) -> bool:
    """Return True if any process was asked to stop, after an exchange between all, which every process must join.

    All must stop at the same step, or the others wait for ever.
    """
    if state.num_processes == 1:
        return requested
    flag = torch.tensor(float(requested), device=state.device)
    torch.distributed.all_reduce(flag)
    return bool(flag)


def where_to_load(run: Run) -> str | None:
    """Return the device to load on: CPU under FSDP, as no device can hold the model before it is sharded; else None."""
    return "cpu" if run.sharding == "fsdp" else None


def sharding(run: Run) -> dict[str, Any]:
    """Return the trainer's options for FSDP (parameters, gradients, optimiser states in shards); none for DDP."""
    if run.sharding != "fsdp":
        return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """Gather the trained weights by name from the shards. A collective: every process must call it."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return {
        name: weight.full_tensor() if hasattr(weight, "full_tensor") else weight for name, weight in weights.items()
    }
