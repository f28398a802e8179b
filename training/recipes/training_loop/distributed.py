"""Coordination of a run's processes: the first one alone reports, and all stop at the same step."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from serving_client.parent_death import die_with_parent
from training.lm.base_model import on_gpu
from training.lm.error_reporting import BadInput
from training.recipes.entrypoint import RunEvents
from training.recipes.run_file import Run


def join(run: Run, events: RunEvents) -> PartialState:
    """Set up this process's device and rank; return its state.

    In every process but the first, `events` then reports errors alone. With several devices the process also dies with
    its launcher. Raises BadInput if the number of processes is not the run's `devices`.
    """
    if run.devices > 1:
        end_with_launcher()
    state = PartialState(cpu=not on_gpu())
    if state.num_processes != run.devices:
        raise BadInput(f"devices: the run wants {run.devices} processes, but {state.num_processes} were launched.")
    events.silent = not state.is_main_process
    return state


def end_with_launcher() -> None:
    """Have Linux kill this process when its launcher ends.

    It has a session of its own, so a kill of the launcher's process group does not reach it. No effect on other
    systems.
    """
    # Without a launcher that died before this line nothing can be joined: the processes meet in it.
    if arm := die_with_parent(signal.SIGKILL, parent=os.getppid()):
        arm()


def anyone(requested: bool, state: PartialState) -> bool:
    """Return True in every process if any of them was asked to stop. A collective call: every process must make it.

    All must stop at the same step, or the others would wait for ever.
    """
    if state.num_processes == 1:
        return requested
    flag = torch.tensor(float(requested), device=state.device)
    torch.distributed.all_reduce(flag)
    return bool(flag)


def where_to_load(run: Run) -> str | None:
    """Return the device to load the model on; None for the default.

    It is "cpu" with FSDP, as one device may not hold all of the model before it is sharded.
    """
    return "cpu" if run.sharding == "fsdp" else None


def sharding(run: Run) -> dict[str, Any]:
    """Return the trainer's options for FSDP (shards of parameters, gradients and optimiser states); {} for DDP."""
    if run.sharding != "fsdp":
        return {}
    return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "SHARDED_STATE_DICT"}}


def of_main_process(number: float, state: PartialState) -> float:
    """Return the first process's number in every process, so that all decide alike. A collective call."""
    if state.num_processes == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64, device=state.device)
    torch.distributed.broadcast(shared, src=0)
    return float(shared)


def whole_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return the trained weights by name, gathered from all shards. A collective call: every process must make it."""
    weights = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    return {
        name: weight.full_tensor() if hasattr(weight, "full_tensor") else weight for name, weight in weights.items()
    }


def set_weights(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy whole weights into the model's parameters of the same names; a model in shards takes each process's part.

    Parameters that `weights` lacks stay as they are. For a model in shards it is a collective call.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # A forward pass leaves the root's weights gathered: copies, which the next step would not read.
            module.reshard()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in weights:
                weight.copy_(placed(weights[name], weight))


def placed(whole: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a whole weight on the device and in the shards of the model's own weight.

    For a weight in shards it is a collective call, and the first process's values are used.
    """
    if isinstance(weight, DTensor):
        mesh = weight.device_mesh
        return distribute_tensor(whole.to(mesh.device_type), mesh, weight.placements)
    return whole.to(weight.device)
