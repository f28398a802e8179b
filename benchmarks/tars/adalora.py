"""AdaLoRA (arXiv:2303.10512) side by side: P E Q with importance pruning, as PEFT's AdaLoraModel and RankAllocator do.

A module starts with 1.5 times the ranks; from `prune_from` the least important triplets of an arm are zeroed on a cubic
schedule until `prune_to`, after which the mask stays. The orthogonality of P and Q is part of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tars.arms import Arm, Loop, Training
from tars.llama import KINDS, Stack, Weights, module_name
from torch import Tensor

BETA = 0.85
ORTHOGONALITY = 0.5
START_DEVIATION = 0.02
PRUNE_FROM, PRUNE_UNTIL, PRUNE_EVERY = 0.1, 0.7, 4


class AdaTraining(Training):
    """Arms whose ranks are the start ranks; `target` are the triplets that an arm keeps, over all its modules."""

    def __init__(self, stack: Stack, arms: Sequence[Arm], width: int, loop: Loop, target: int) -> None:
        super().__init__(stack, arms, width, loop)
        self.target = target
        self.alive = {kind: (self.a[kind].detach().abs().sum(3, keepdim=True) > 0).float() for kind in KINDS}
        self.kept = {kind: alive.clone() for kind, alive in self.alive.items()}
        generator = torch.Generator().manual_seed(arms[0].seed)
        with torch.no_grad():
            for side in (self.a, self.b):
                for kind, leaf in side.items():
                    normal = torch.randn(leaf.shape, generator=generator).to(leaf) * START_DEVIATION
                    leaf.copy_(normal * self.alive[kind])
        self.e = {kind: torch.zeros_like(self.alive[kind]) for kind in KINDS}
        self.add_leaves(list(self.e.values()), self.rates[: len(KINDS)])
        self.mean = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.doubt = [torch.zeros_like(leaf) for leaf in self.leaves]

    def scaled(self) -> Weights:
        return {kind: self.a[kind] * self.e[kind] for kind in KINDS}

    def step(self, index: int, ids: Tensor) -> Tensor:
        losses = self.stack.losses(ids, self.scaled(), self.b).mean((1, 2))
        gradients = list(torch.autograd.grad(losses.sum() + ORTHOGONALITY * self.crookedness(), self.leaves))
        with torch.no_grad():
            self.clip(gradients)
            self.adam(gradients, index)
            self.weigh(gradients)
            self.prune(index)
        return losses.detach()

    def crookedness(self) -> Tensor:
        """Mean over the factors of ||P P' - I||_F, summed over arms."""
        total, count = torch.zeros((), device=self.leaves[0].device), 0
        for side in (self.a, self.b):
            for kind, leaf in side.items():
                identity = torch.diag_embed(self.alive[kind].squeeze(3))
                total = total + (leaf @ leaf.mT - identity).square().sum((2, 3)).add(1e-12).sqrt().sum()
                count += leaf.shape[0]
        return total / count

    def weigh(self, gradients: list[Tensor]) -> None:
        """Smoothed |w * g| and its smoothed deviation, for every number."""
        for leaf, gradient, mean, doubt in zip(self.leaves, gradients, self.mean, self.doubt, strict=True):
            importance = (leaf * gradient).abs()
            mean.lerp_(importance, 1 - BETA)
            doubt.lerp_((importance - mean).abs(), 1 - BETA)

    def prune(self, index: int) -> None:
        """Zero the least important E every few steps; one that is zeroed may come back until the mask is final."""
        start, end = int(PRUNE_FROM * self.loop.steps), int(PRUNE_UNTIL * self.loop.steps)
        if start <= index <= end and (index % PRUNE_EVERY == 0 or index == end):
            share = (1 - (index - start) / (end - start)) ** 3
            scores = self.triplets()
            for arm in range(len(self.arms)):
                self.keep_best(arm, scores, share)
        if index >= end or index % PRUNE_EVERY == 0:
            for kind in KINDS:
                self.e[kind].mul_(self.kept[kind])

    def triplets(self) -> Weights:
        """Importance of every triplet: that of E plus the means over its row of A and of B. (L, N, R, 1)"""
        kinds = len(KINDS)
        products = [mean * doubt for mean, doubt in zip(self.mean, self.doubt, strict=True)]
        return {
            kind: products[2 * kinds + place]
            + products[place].mean(3, keepdim=True)
            + products[kinds + place].mean(3, keepdim=True)
            for place, kind in enumerate(KINDS)
        }

    def keep_best(self, arm: int, scores: Weights, share: float) -> None:
        started = sum(self.arms[arm].ranks.values())
        count = int((started - self.target) * share + self.target)
        flat = [scores[kind][:, arm].masked_fill(self.alive[kind][:, arm] == 0, -1.0).flatten() for kind in KINDS]
        least = torch.cat(flat).topk(count).values[-1]
        for kind in KINDS:
            self.kept[kind][:, arm] = (scores[kind][:, arm] >= least) * self.alive[kind][:, arm]

    def ranks(self, arm: int) -> dict[str, int]:
        remaining = {kind: (self.kept[kind][:, arm].sum((1, 2))).int().tolist() for kind in KINDS}
        return {module_name(layer, kind): rank for kind in KINDS for layer, rank in enumerate(remaining[kind])}

    def evaluate(self, ids: Tensor, batch: int) -> Tensor:
        with torch.no_grad():
            scaled = self.scaled()
            parts = [self.stack.losses(part, scaled, self.b).mean(2) for part in ids.split(batch, 1)]
        return torch.cat(parts, 1)
