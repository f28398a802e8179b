"""Many adapters in one forward pass: every linear module multiplies each row with that row's adapter.

The base model's product is one for all rows. The update is computed in one of two ways, and both read each adapter's
weights once a step. On a CPU the rows are grouped by adapter, and two batched products over the adapters' slots compute
all groups at once. On a GPU, kernel launches and not arithmetic limit a forward pass of few tokens: every row is
multiplied with all slots in use, and the results of other rows' adapters are set to zero in between. Where Triton is
available, a recorded step uses kernels of its own, in which a row reads its adapter alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain
from shutil import which

import torch
from torch import nn
from transformers import PreTrainedModel

from serving_client.engine.adapters.adapter import Adapter
from serving_client.engine.kernels.packed_linear import packed

Rows = Sequence[Adapter | None]
"""The adapter of each row of a batch; None is the base model."""
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""x (rows, 1, in), y (rows, 1, out), all slots' down and up, slot of each row -> y with the update added."""
MOST_TOKENS = 256
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlotRows:
    """The adapter slot of each row of a batch, -1 for the base model alone.

    `slots` is the range in use, from whose first slot `of_rows` counts; `kernel`, if given, computes the updates.
    """

    slots: slice  # from the first to the last slot in use
    of_rows: torch.Tensor  # (all rows,) slot of each, counted from the first in use; -1 is the base model
    kernel: Kernel | None = field(default=None, kw_only=True)
    _foreign: dict[int, torch.Tensor] = field(default_factory=dict, kw_only=True)

    def foreign(self, rank: int) -> torch.Tensor | None:
        """Return a mask (all rows, 1, slots x rank) that is True for the columns of adapters other than the row's own.

        It is made once for each rank.
        """
        if rank not in self._foreign:
            slots = torch.arange(self.slots.stop - self.slots.start, device=self.of_rows.device)
            self._foreign[rank] = (self.of_rows[:, None] != slots).repeat_interleave(rank, dim=1)[:, None]
        return self._foreign[rank]


@dataclass(frozen=True)
class Groups(SlotRows):
    """Rows grouped by slot, in addition to the slot of each row. Groups are padded to the longest one with row 0."""

    members: torch.Tensor  # (slots, longest) row of each member
    real: torch.Tensor  # (rows with an adapter,) their indices among the flattened members
    rows: torch.Tensor  # (rows with an adapter,) their row indices
    covers_batch: bool  # one adapter has all rows

    def foreign(self, rank: int) -> torch.Tensor | None:
        """Return the mask of `SlotRows.foreign`, or None if one adapter has all rows."""
        return None if self.covers_batch else super().foreign(rank)


class LoraLinear(nn.Module):
    """A linear module of the base model, with slots for the low-rank updates of adapters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self._groups: SlotRows | None = None
        self.linear = packed(linear)
        self._ranks: dict[int, int] = {}  # of the update in each slot
        self._down = linear.weight.new_zeros(0, 0, linear.in_features)  # (slots, rank, in)
        self._up = linear.weight.new_zeros(0, 0, linear.out_features)  # (slots, rank, out)
        self._in_use: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] = self._down, self._up, None

    @property
    def device(self) -> torch.device:
        """The device that holds the slots."""
        return self._down.device

    @property
    def slots(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrices of all slots: down (slots, rank, in) and up (slots, rank, out)."""
        return self._down, self._up

    def make_room(self, rank: int, slot: int, slots: int) -> bool:
        """Prepare the slot for an update of the rank, 0 for none; return True if the slots moved in memory.

        `slots` is the number of all slots. All slots are as wide as the highest rank; what a lower rank leaves of its
        slot is set to zero.
        """
        if not rank and not self._ranks.get(slot):
            return False
        self._ranks[slot] = rank
        has_moved = self._fit(slots, max(self._ranks.values()))
        if rank < self._down.shape[1]:
            self._down[slot, rank:] = 0
            self._up[slot, rank:] = 0
        return has_moved

    def _fit(self, slots: int, rank: int) -> bool:
        if self._down.shape[:2] == (slots, rank):
            return False
        self._down = _resized(self._down, slots, rank)
        self._up = _resized(self._up, slots, rank)
        return True

    def room(self, rank: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the views of a slot that hold an update of that rank: (rank, in) and (rank, out)."""
        down, up = self._down[slot], self._up[slot]
        return (down, up) if rank == len(down) else (down[:rank], up[:rank])

    def use(self, groups: SlotRows | None) -> None:
        """Set the adapter slot of each row for the next forward passes; None for no adapter.

        Call it after every `make_room`.
        """
        rank = self._down.shape[1]
        self._groups = groups if rank else None
        if groups and rank and not groups.kernel:
            # Views are made here, once a batch, because `forward` runs in some hundred modules a step.
            down, up = (stacked[groups.slots].flatten(0, 1) for stacked in (self._down, self._up))
            self._in_use = down, up, groups.foreign(rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x (rows, tokens, in) times the weights, (rows, tokens, out), plus the update of each row's adapter."""
        y: torch.Tensor = self.linear(x)
        if self._groups is None:
            return y
        if self._groups.kernel:
            return self._groups.kernel(x, y, self._down, self._up, self._groups.of_rows)
        if isinstance(self._groups, Groups) and not (self._groups.covers_batch or waits_for_launches(x)):
            return self._add_to_groups(x, y, self._groups)
        return self._add_from_slots(x, y, *self._in_use)

    def _add_from_slots(
        self, x: torch.Tensor, y: torch.Tensor, down: torch.Tensor, up: torch.Tensor, foreign: torch.Tensor | None
    ) -> torch.Tensor:
        ranks = nn.functional.linear(x, down)
        if foreign is not None:
            # Adapters with NaN or infinity are refused when they are read: zero times any weight here is zero.
            ranks.masked_fill_(foreign, 0)
        y.flatten(0, 1).addmm_(ranks.flatten(0, 1), up)
        return y

    def _add_to_groups(self, x: torch.Tensor, y: torch.Tensor, groups: Groups) -> torch.Tensor:
        tokens = x.shape[1]
        count, longest = groups.members.shape
        members = x[groups.members.flatten()].view(count, longest * tokens, self.in_features)
        ranks = members.bmm(self._down[groups.slots].transpose(1, 2))
        update = ranks.bmm(self._up[groups.slots]).view(count * longest, tokens, self.out_features)
        return y.index_add_(0, groups.rows, update[groups.real])


def waits_for_launches(x: torch.Tensor) -> bool:
    """Return True if x (rows, tokens, ...) is on a GPU and so small that kernel launches dominate the time."""
    return x.is_cuda and x.shape[0] * x.shape[1] <= MOST_TOKENS


def row_kernel(device: torch.device) -> Kernel | None:
    """Return the Triton kernel for recorded steps, or None without a GPU, Triton or a C compiler.

    What a GPU lacks is logged, as its batches of many adapters are slower then.
    """
    if device.type != "cuda":
        return None
    lacks = "Triton" if not find_spec("triton") else "" if which("gcc") or which("clang") else "a C compiler"
    if lacks:
        log.warning("Without %s batches of many adapters do without their kernels, which makes them slower.", lacks)
        return None
    from serving_client.vllm_plugin.row_kernels import with_rows

    return with_rows


def _resized(old: torch.Tensor, slots: int, rank: int) -> torch.Tensor:
    resized = old.new_zeros(slots, rank, old.shape[2])
    common = min(rank, old.shape[1])
    resized[: old.shape[0], :common] = old[:, :common]
    return resized


class ResidentAdapters:
    """Adapters in the slots of the modules: at most `limit`; the least recently used is evicted first."""

    def __init__(self, modules: dict[str, LoraLinear], limit: int) -> None:
        self._modules = modules
        self._limit = limit
        self._device = next((module.device for module in modules.values()), torch.device("cpu"))
        self._slots: dict[Adapter, int] = {}  # ordered by last use
        self._routed: list[Adapter | None] | None = None  # None: the modules' rows have to be set again
        self.moves = 0  # changes whenever slots have moved in memory

    def admit(self, adapter: Adapter, busy: set[Adapter]) -> bool:
        """Put an adapter into a slot unless it is in one, mark it as the most recently used, and return True.

        If no slot is free, the least recently used adapter that is not in `busy` is evicted; return False if all are
        busy.
        """
        if adapter in self._slots:
            self._slots[adapter] = self._slots.pop(adapter)
            return True
        slot = self._free_slot(busy)
        if slot is None:
            return False
        self._slots[adapter] = slot
        self._place(adapter, slot)
        return True

    def _free_slot(self, busy: set[Adapter]) -> int | None:
        if len(self._slots) < self._limit:
            return len(self._slots)
        idle = next((adapter for adapter in self._slots if adapter not in busy), None)
        return self._slots.pop(idle) if idle else None

    def _place(self, adapter: Adapter, slot: int) -> None:
        self._routed = None
        for name, module in self._modules.items():
            update = adapter.modules.get(name)
            self.moves += module.make_room(update.rank if update else 0, slot, self._limit)
        rooms = [self._modules[name].room(update.rank, slot) for name, update in adapter.modules.items()]
        # Some hundred separate copies from Python would take a fifth of the time of a GPU's step.
        torch._foreach_copy_(list(chain(*rooms)), adapter.matrices(self._device), non_blocking=True)

    def route(self, rows: Rows) -> None:
        """Set the adapter of each row, None for the base model, for the next forward passes. All must be resident."""
        if self._routed != list(rows):
            groups = _groups([self._slots[adapter] if adapter else None for adapter in rows], self._device)
            self.use(groups)
            self._routed = list(rows)

    def slots_of(self, rows: Rows) -> list[int]:
        """Return the slot of each row, -1 for the base model; all adapters must be resident."""
        return [self._slots[adapter] if adapter else -1 for adapter in rows]

    def use(self, groups: SlotRows | None) -> None:
        """Set on every module which slot each row of the batch uses in the next forward passes.

        None for no adapters.
        """
        self._routed = None
        for module in self._modules.values():
            module.use(groups)


def _groups(slots: list[int | None], device: torch.device) -> Groups | None:
    used = sorted({slot for slot in slots if slot is not None})
    if not used:
        return None
    span = range(used[0], used[-1] + 1)
    members = [[row for row, slot in enumerate(slots) if slot == wanted] for wanted in span]
    longest = max(len(group) for group in members)
    return Groups(
        slots=slice(span.start, span.stop),
        members=torch.tensor([group + [0] * (longest - len(group)) for group in members], device=device),
        real=torch.tensor(
            [longest * i + j for i, group in enumerate(members) for j in range(len(group))], device=device
        ),
        rows=torch.tensor([row for group in members for row in group], device=device),
        of_rows=torch.tensor([-1 if slot is None else slot - span.start for slot in slots], device=device),
        covers_batch=slots == [used[0]] * len(slots),
    )


def wrap_linears(model: PreTrainedModel) -> dict[str, LoraLinear]:
    """Replace every linear module but the output head, in place, by a LoraLinear; return these by name.

    On a CPU with oneDNN the weights of all, the head's included, are packed for faster products.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    wrapped = {}
    for name, linear in linears:
        if linear is not head:
            wrapped[name] = LoraLinear(linear)
        model.set_submodule(name, wrapped.get(name) or packed(linear))
    return wrapped
