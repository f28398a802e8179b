"""Distribution of one analysis over several processes with a device each: shares of the work, and merging of results.

`python -m torch.distributed.run --standalone --nproc-per-node N -m training.tars ...` starts them. A process that was
started alone does all the work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, distributed

Item = TypeVar("Item")
Found = TypeVar("Found")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Join the launcher's process group for the block and wait for all processes at its end.

    No effect for a single process. The group is not destroyed: the processes end by `error_reporting.last`. An error in
    the block skips the wait.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    yield
    distributed.barrier()


def size() -> int:
    """Return the number of processes; 1 outside a group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def place() -> int:
    """Return this process's rank, from 0; 0 outside a group."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(items: Iterable[Item]) -> Iterator[Item]:
    """Yield this process's share of the items: every size()-th one, from its rank on."""
    return islice(items, place(), None, size())


def every(items: list[Item], work: Callable[[Item], Found]) -> list[Found]:
    """Return `work(item)` of all items in their order; each process computes its share, and all get every result.

    A collective call: every process must make it.
    """
    parts = gathered([work(item) for item in share(items)])
    return [parts[number % size()][number // size()] for number in range(len(items))]


def gathered(part: Found) -> list[Found]:
    """Return the `part` of every process, by rank. A collective call: every process must make it."""
    if size() == 1:
        return [part]
    parts: list[Found | None] = [None] * size()
    distributed.all_gather_object(parts, part)
    return parts  # type: ignore[return-value]


def add_up(*sums: Tensor | None) -> None:
    """Replace each tensor by its sum over all processes, in place; None is skipped. A collective call."""
    for tensor in sums:
        if tensor is not None and size() > 1:
            distributed.all_reduce(tensor)
