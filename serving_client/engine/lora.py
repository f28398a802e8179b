"""Many adapters in one forward: every linear module multiplies each row with that row's adapter.

All resident adapters of a module stand below each other in one pair of matrices, each with its true rank. A batch
takes two products, whatever the number of adapters: down to all ranks, then the ranks of other rows' adapters are
set to zero, then up. No padding to a common rank, and the weights are read once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from serving_client.engine.adapter import Adapter, LowRank

Rows = Sequence[Adapter | None]
"""The adapter of each row of a batch; None is the base model."""


@dataclass(frozen=True)
class Route:
    """What one module adds in this batch."""

    down: torch.Tensor  # (ranks, in)
    up: torch.Tensor  # (ranks, out)
    others: torch.Tensor | None  # (rows, 1, ranks), true where the rank belongs to another row's adapter


class LoraLinear(nn.Module):
    """A linear module of the base model, with the low-rank updates of the resident adapters."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.spans: dict[Adapter, tuple[int, int]] = {}
        self.down = linear.weight.new_empty(0, linear.in_features)
        self.up = linear.weight.new_empty(0, linear.out_features)
        self.route: Route | None = None

    def place(self, adapters: Sequence[Adapter], name: str) -> None:
        """Stacks the adapters' matrices; `name` is the module's name in them."""
        updates = {adapter: adapter.modules[name] for adapter in adapters if name in adapter.modules}
        self.spans = _spans(updates)
        if updates:
            self.down = torch.cat([update.down for update in updates.values()])
            self.up = torch.cat([update.up for update in updates.values()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, tokens, in) -> (rows, tokens, out)."""
        y: torch.Tensor = self.linear(x)
        if self.route is None:
            return y
        ranks = nn.functional.linear(x, self.route.down)
        if self.route.others is not None:
            # Filled, not multiplied: another adapter's overflow times zero would be NaN in this row.
            ranks.masked_fill_(self.route.others, 0.0)
        y.flatten(0, 1).addmm_(ranks.flatten(0, 1), self.route.up)
        return y


def _spans(updates: dict[Adapter, LowRank]) -> dict[Adapter, tuple[int, int]]:
    spans = {}
    start = 0
    for adapter, update in updates.items():
        spans[adapter] = (start, start + update.rank)
        start += update.rank
    return spans


class ResidentAdapters:
    """The adapters that a batch may use now: at most `limit`, the least recently used makes room."""

    def __init__(self, modules: dict[str, LoraLinear], limit: int) -> None:
        self._modules = modules
        self._limit = limit
        self._residents: dict[Adapter, None] = {}  # ordered by last use
        self._placed: list[Adapter] = []
        self._routed: list[Adapter | None] | None = None

    def admit(self, adapter: Adapter, busy: set[Adapter]) -> bool:
        """Takes an adapter in, in place of one that is not busy. False if all are."""
        if adapter not in self._residents and len(self._residents) >= self._limit:
            idle = next((resident for resident in self._residents if resident not in busy), None)
            if idle is None:
                return False
            del self._residents[idle]
        self._residents.pop(adapter, None)
        self._residents[adapter] = None
        return True

    def route(self, rows: Rows) -> None:
        """Makes the next forward use these adapters, one a row."""
        changed = self._place()
        if changed or self._routed != list(rows):
            self._routed = list(rows)
            masks: dict[tuple[int, ...], torch.Tensor] = {}
            for module in self._modules.values():
                module.route = _route(module, rows, masks)

    def _place(self) -> bool:
        if self._residents.keys() == set(self._placed):
            return False
        self._placed = list(self._residents)
        for name, module in self._modules.items():
            module.place(self._placed, name)
        return True

    def names(self) -> list[str]:
        """Names of the residents, least recently used first."""
        return [adapter.name for adapter in self._residents]


def _route(module: LoraLinear, rows: Rows, masks: dict[tuple[int, ...], torch.Tensor]) -> Route | None:
    active = [module.spans.get(adapter, (0, 0)) if adapter else (0, 0) for adapter in rows]
    used = [span for span in active if span[0] < span[1]]
    if not used:
        return None
    start, end = min(span[0] for span in used), max(span[1] for span in used)
    others = None if len(set(active)) == 1 else _others(active, start, end, masks)
    return Route(module.down[start:end], module.up[start:end], others)


def _others(
    active: list[tuple[int, int]], start: int, end: int, masks: dict[tuple[int, ...], torch.Tensor]
) -> torch.Tensor:
    # Modules with the same ranks share a mask.
    key = tuple(edge for span in active for edge in span)
    if key not in masks:
        edges = torch.tensor(active)[:, :, None]  # (rows, 2, 1)
        rank = torch.arange(start, end)
        masks[key] = ((rank < edges[:, 0]) | (rank >= edges[:, 1]))[:, None, :]
    return masks[key]


def wrap_linears(model: PreTrainedModel) -> dict[str, LoraLinear]:
    """Puts a LoraLinear in the place of every linear module but the output head; returns them by the module's name."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head]
    wrapped = {name: LoraLinear(linear) for name, linear in found}
    for name, module in wrapped.items():
        model.set_submodule(name, module)
    return wrapped
