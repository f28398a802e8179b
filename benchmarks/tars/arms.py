"""LoRA and DoRA runs that train side by side on a Stack, each with its own ranks, rate, data and seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from tars.llama import KINDS, Stack, Weights, module_name
from torch import Tensor

Ranks = Mapping[str, int]  # by full module name; absent = 0
Factors = dict[str, Tensor]  # by full module name


@dataclass
class Arm:
    """One run; `a` (r, in) and `b` (out, r) replace the start values."""

    ranks: Ranks
    rate: float
    seed: int
    a: Factors = field(default_factory=dict)
    b: Factors = field(default_factory=dict)
    ratio: float = 1.0  # rate of B over rate of A
    method: str = "lora"


@dataclass(frozen=True)
class Loop:
    """Steps of the whole run and of its warm-up."""

    steps: int = 100
    warmup: int = 6

    def rate(self, step: int) -> float:
        """Linear warm-up, then cosine to zero."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


def starting(arm: Arm, stack: Stack, width: int) -> tuple[Weights, Weights]:
    """PEFT's start values, A uniform in +-1/sqrt(in) and B zero, or the arm's own. (L, R, in), (L, R, out) by kind"""
    generator = torch.Generator().manual_seed(arm.seed)
    a, b = {}, {}
    for kind in KINDS:
        out, inner = stack.base.shape(kind)
        a[kind] = torch.zeros(len(stack.base.layers), width, inner)
        b[kind] = torch.zeros(len(stack.base.layers), width, out)
        for layer in range(len(stack.base.layers)):
            name = module_name(layer, kind)
            rank = arm.ranks.get(name, 0)
            uniform = (torch.rand(width, inner, generator=generator) * 2 - 1) / math.sqrt(inner)
            a[kind][layer, :rank] = arm.a[name][:rank] if name in arm.a else uniform[:rank]
            if name in arm.b:
                b[kind][layer, :rank] = arm.b[name][:, :rank].T
    return a, b


class Training:
    """N arms in step: AdamW without decay, gradients clipped to norm 1 arm by arm."""

    def __init__(self, stack: Stack, arms: Sequence[Arm], width: int, loop: Loop) -> None:
        self.stack, self.arms, self.loop = stack, arms, loop
        device = stack.base.embedding.device
        started = [starting(arm, stack, width) for arm in arms]
        self.a = {kind: torch.stack([a[kind] for a, _ in started], 1).to(device).requires_grad_() for kind in KINDS}
        self.b = {kind: torch.stack([b[kind] for _, b in started], 1).to(device).requires_grad_() for kind in KINDS}
        self.leaves = [*self.a.values(), *self.b.values()]
        self.first = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.second = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.rates = self.rates_of_leaves(device)
        self.dora = any(arm.method == "dora" for arm in arms)
        self.magnitudes = self.norms() if self.dora else None
        if self.magnitudes is not None:
            self.add_leaves(list(self.magnitudes.values()), self.where_adapted(self.rates[: len(KINDS)]))

    def rates_of_leaves(self, device: torch.device) -> list[Tensor]:
        """(1, N, 1, 1) for every leaf: first those of A, then those of B."""
        of_a = torch.tensor([arm.rate for arm in self.arms], device=device)[None, :, None, None]
        of_b = torch.tensor([arm.rate * arm.ratio for arm in self.arms], device=device)[None, :, None, None]
        return [of_a] * len(KINDS) + [of_b] * len(KINDS)

    def add_leaves(self, leaves: list[Tensor], rates: list[Tensor]) -> None:
        for leaf, rate in zip(leaves, rates, strict=True):
            self.leaves.append(leaf.requires_grad_())
            self.first.append(torch.zeros_like(leaf))
            self.second.append(torch.zeros_like(leaf))
            self.rates.append(rate)

    def where_adapted(self, rates: list[Tensor]) -> list[Tensor]:
        """Rates that are zero where an arm has no rank: PEFT leaves such a module out, its magnitude too."""
        masked = []
        for kind, rate in zip(KINDS, rates, strict=True):
            has = [
                [float(arm.ranks.get(module_name(layer, kind), 0) > 0) for arm in self.arms]
                for layer in range(len(self.stack.base.layers))
            ]
            masked.append(rate * torch.tensor(has, device=rate.device)[:, :, None, None])
        return masked

    def norms(self) -> Weights:
        """||W + scale * B A|| of each output channel, without a gradient, as DoRA wants it. (L, N, 1, out) by kind"""
        with torch.no_grad():
            return {kind: self.norms_of(kind) for kind in KINDS}

    def norms_of(self, kind: str) -> Tensor:
        rows = []
        for layer, weights in enumerate(self.stack.base.layers):
            w, a, b = weights[kind].float(), self.a[kind][layer], self.b[kind][layer]
            cross = torch.einsum("ok,nrk->nro", w, a)
            inner = torch.bmm(a, a.mT)
            square = w.square().sum(1)[None] + 2 * self.stack.scale * (b * cross).sum(1)
            square = square + self.stack.scale**2 * (b * torch.bmm(inner, b)).sum(1)
            rows.append(square.clamp(min=1e-12).sqrt()[:, None])
        return torch.stack(rows)

    def gains(self) -> list[Weights] | None:
        if self.magnitudes is None:
            return None
        norms, dtype = self.norms(), self.stack.base.embedding.dtype
        ratios = {kind: (self.magnitudes[kind] / norms[kind]).to(dtype).unbind(0) for kind in KINDS}
        return [{kind: ratios[kind][layer] for kind in KINDS} for layer in range(len(self.stack.base.layers))]

    def step(self, index: int, ids: Tensor) -> Tensor:
        """One step on (N, B, T + 1) ids. Returns each arm's mean loss before it. (N,)"""
        losses = self.stack.losses(ids, self.a, self.b, self.gains()).mean((1, 2))
        gradients = list(torch.autograd.grad(losses.sum(), self.leaves))
        with torch.no_grad():
            self.clip(gradients)
            self.adam(gradients, index)
        return losses.detach()

    def clip(self, gradients: list[Tensor]) -> None:
        squares = torch.stack([gradient.square().sum((0, 2, 3)) for gradient in gradients]).sum(0)
        factor = (1.0 / (squares.sqrt() + 1e-6)).clamp(max=1.0)[None, :, None, None]
        torch._foreach_mul_(gradients, [factor] * len(gradients))

    def adam(self, gradients: list[Tensor], index: int, beta: float = 0.9, gamma: float = 0.999) -> None:
        torch._foreach_lerp_(self.first, gradients, 1 - beta)
        torch._foreach_mul_(self.second, gamma)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - gamma)
        roots = torch._foreach_sqrt(self.second)
        torch._foreach_div_(roots, math.sqrt(1 - gamma ** (index + 1)))
        torch._foreach_add_(roots, 1e-8)
        moves = torch._foreach_div(self.first, roots)
        torch._foreach_mul_(moves, self.rates)
        torch._foreach_mul_(moves, -self.loop.rate(index) / (1 - beta ** (index + 1)))
        torch._foreach_add_(self.leaves, moves)

    def run(self, batches: Iterator[Tensor], steps: int) -> list[Tensor]:
        return [self.step(index, next(batches)) for index in range(steps)]

    def evaluate(self, ids: Tensor, batch: int) -> Tensor:
        """Mean loss of each held-out sequence. (N, S, T + 1) -> (N, S)"""
        with torch.no_grad():
            gains = self.gains()
            parts = [self.stack.losses(part, self.a, self.b, gains).mean(2) for part in ids.split(batch, 1)]
        return torch.cat(parts, 1)

    def ranks(self, arm: int) -> Ranks:
        """What an arm ends with."""
        return self.arms[arm].ranks

    def factors(self, arm: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(name, A (r, in), B (out, r)) of every module of an arm."""
        for kind in KINDS:
            for layer in range(len(self.stack.base.layers)):
                name = module_name(layer, kind)
                rank = self.arms[arm].ranks.get(name, 0)
                a, b = self.a[kind][layer, arm, :rank], self.b[kind][layer, arm, :rank]
                yield name, a.detach(), b.detach().T
