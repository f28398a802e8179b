"""EVA (arXiv:2410.07170): ranks and start values of A from the principal components of a module's inputs.

PEFT reaches the components batch by batch with an incremental PCA; here the covariance is summed over the sample and
solved once, which is what that converges to. Ranks follow PEFT: the largest ratios of explained variance over all
modules, at most `rho` times the mean rank each, as many in all as uniform ranks would have.
"""

from __future__ import annotations

from typing import Any

import torch
from tars.llama import KINDS, module_name
from torch import Tensor

# Modules that read the same input share its components.
READS = {
    "q_proj": "q_proj",
    "k_proj": "q_proj",
    "v_proj": "q_proj",
    "o_proj": "o_proj",
    "gate_proj": "gate_proj",
    "up_proj": "gate_proj",
    "down_proj": "down_proj",
}


def components(model: Any, ids: Tensor, count: int, batch: int = 16) -> dict[str, tuple[Tensor, Tensor]]:
    """(ratios of explained variance (count,), directions (count, in)) of every module's input over (S, T) ids."""
    sums: dict[str, list[Any]] = {}
    layers = range(model.config.num_hidden_layers)
    names = {module_name(layer, kind) for layer in layers for kind in set(READS.values())}
    wanted = [(name, module) for name, module in model.named_modules() if name in names]
    hooks = [module.register_forward_hook(adding(sums, name)) for name, module in wanted]
    with torch.no_grad():
        for part in ids.split(batch):
            model(part, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: leading(*moments, count) for name, moments in sums.items()}


def adding(sums: dict[str, list[Any]], name: str) -> Any:
    def add(_module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        x = inputs[0].flatten(0, 1).float()
        moments = sums.setdefault(name, [0.0, 0.0, 0])
        moments[0], moments[1], moments[2] = moments[0] + x.T @ x, moments[1] + x.sum(0), moments[2] + len(x)

    return add


def leading(square: Tensor, total: Tensor, tokens: int, count: int) -> tuple[Tensor, Tensor]:
    mean = total / tokens
    values, vectors = torch.linalg.eigh(square.double() / tokens - torch.outer(mean, mean).double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    return (values / values.sum())[:count].cpu(), vectors[:, :count].T.float().cpu()


def plan(model: Any, ids: Tensor, rank: int, rho: int = 2) -> tuple[dict[str, int], dict[str, Tensor]]:
    """(ranks, start values of A) by full module name."""
    components_of = components(model, ids, rho * rank)
    layers = range(model.config.num_hidden_layers)
    of = {
        module_name(layer, kind): components_of[module_name(layer, READS[kind])] for layer in layers for kind in KINDS
    }
    ratios = [(float(ratio), name) for name, (values, _) in of.items() for ratio in values]
    best = sorted(ratios, reverse=True)[: rank * len(of)]
    ranks = {name: sum(chosen == name for _, chosen in best) for name in of}
    return ranks, {name: directions for name, (_, directions) in of.items()}
