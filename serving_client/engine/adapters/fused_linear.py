"""Linear modules with a common input, computed as one product, plus each row's adapter update; for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn

from serving_client.engine.adapters.lora import LoraLinear
from serving_client.vllm_plugin.row_kernels import expand, shrink


class _Update(NamedTuple):
    """Modules whose slots have one rank, and the column of their first output."""

    downs: Sequence[torch.Tensor]
    ups: Sequence[torch.Tensor]
    start: int


class JoinedLinear:
    """Several linear modules computed as one matrix product.

    Making one moves their weights and biases into one tensor each, of which each module keeps a view.
    """

    def __init__(self, modules: Sequence[LoraLinear]) -> None:
        self._modules = tuple(modules)
        linears: list[Any] = [module.linear for module in modules]
        widths = [module.out_features for module in modules]
        self._starts = [0, *accumulate(widths)][:-1]
        self._weight = _joined([linear.weight for linear in linears])
        biases = [linear.bias for linear in linears if linear.bias is not None]
        self._bias = _joined(biases) if biases else None

    def __call__(self, x: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
        """Return the outputs of all modules for x (rows, in), with the adapters' updates: (rows, all outputs).

        `slots` (rows,) holds the adapter slot of each row, -1 for none; None means that no row has one.
        """
        if slots is None:
            return nn.functional.linear(x, self._weight, self._bias)
        updates = self._updates()
        here, beside = torch.cuda.current_stream(x.device), _stream_beside(x.device)
        beside.wait_stream(here)
        # Small kernels that wait for memory: the product that reads the base weights hides them.
        with torch.cuda.stream(beside):
            inners = [_shrunk(x, update.downs, slots) for update in updates]
        y = nn.functional.linear(x, self._weight, self._bias)
        here.wait_stream(beside)
        for inner, update in zip(inners, updates, strict=True):
            expand(inner, update.ups, y, slots, start=update.start)
        return y

    def _updates(self) -> list[_Update]:
        downs, ups = zip(*(module.slots for module in self._modules), strict=True)
        ranks = {down.shape[1] for down in downs}
        if len(ranks) == 1 and 0 not in ranks:
            return [_Update(downs, [up.mT for up in ups], 0)]
        return [
            _Update((down,), (up.mT,), start)
            for down, up, start in zip(downs, ups, self._starts, strict=True)
            if down.shape[1]
        ]


def can_join(modules: Sequence[LoraLinear]) -> bool:
    """Return True for plain linear modules of the same input width of which all or none have a bias."""
    biases = {module.linear.bias is None for module in modules if isinstance(module.linear, nn.Linear)}
    all_plain = all(isinstance(module.linear, nn.Linear) for module in modules)
    return all_plain and len(biases) == 1 and len({module.in_features for module in modules}) == 1


def _joined(parameters: list[torch.Tensor]) -> torch.Tensor:
    if len(parameters) == 1:
        return parameters[0]
    joined = torch.cat([parameter.detach() for parameter in parameters])
    for parameter, part in zip(
        parameters, torch.split(joined, [len(parameter) for parameter in parameters]), strict=True
    ):
        parameter.data = part
    return joined


@cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _shrunk(x: torch.Tensor, downs: Sequence[torch.Tensor], slots: torch.Tensor) -> torch.Tensor:
    inner = x.new_empty(len(downs), len(slots), downs[0].shape[1], dtype=torch.float32)
    shrink(x, downs, inner, slots)
    return inner
