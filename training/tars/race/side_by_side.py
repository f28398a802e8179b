"""Many LoRA runs on one frozen base at once: each candidate has its own ranks, start values and learning rate.

The model's own forward pass reads every candidate's copy of the batch, and hooks add each candidate's update to its
copies, so an architecture works as it stands in transformers. Candidates do not touch: the loss of one depends on its
own factors alone. Ranks are padded with zero rows, which stay zero under Adam, so candidates of different ranks are
exact (tests/tars/test_race_against_peft.py).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.lm.token_sequences import IGNORED
from training.tars.signals import Batch, frozen, loss_by_sequence

ByModule = dict[str, Tensor]
BETA, GAMMA, EPSILON = 0.9, 0.999, 1e-8


class UnknownArchitecture(ValueError):
    """Raised if a module does not see the batch as (sequences, tokens, features), as experts of a mixture do not."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} does not read whole sequences, so candidates cannot be trained side by side: leave it out of "
            "target_modules, or take the preset default."
        )


@dataclass(frozen=True)
class Lane:
    """One candidate's adapter and rate.

    `ranks` are by full module name, absent = 0; `start` are start values of A (at least the rank, in), where missing
    PEFT's are drawn.
    """

    ranks: Mapping[str, int]
    rate: float
    start: Mapping[str, Tensor] | None = None


class SideBySide:
    """LoRA candidates (`lanes`) that train on one frozen base, all on the same batches.

    The optimiser is AdamW without weight decay, with each candidate's gradients clipped to a norm of 1. `scale` is
    alpha / r; the seed fixes the start values that a lane does not give. Losses are in nats.
    """

    def __init__(
        self, model: nn.Module, modules: Mapping[str, nn.Module], lanes: Sequence[Lane], scale: float, seed: int
    ) -> None:
        self.model, self.lanes, self.scale = model, lanes, scale
        self.modules = {name: module for name, module in modules.items() if width_of(name, lanes)}
        device = next(model.parameters()).device
        self.a: ByModule = {}  # (N, R, in)
        self.b: ByModule = {}  # (N, out, R)
        for name, module in self.modules.items():
            a, b = starting(name, module, lanes, torch.Generator().manual_seed(seed))
            self.a[name], self.b[name] = a.to(device).requires_grad_(), b.to(device).requires_grad_()
        self.leaves = [*self.a.values(), *self.b.values()]
        self.first = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.second = [torch.zeros_like(leaf) for leaf in self.leaves]
        self.rates = torch.tensor([lane.rate for lane in lanes], device=device)[:, None, None]
        self.taken = 0

    def losses(self, batch: Batch) -> Tensor:
        """Return every candidate's mean loss over the counted tokens of each sequence of the batch; (N, B).

        Raises UnknownArchitecture.
        """
        copies = len(self.lanes)
        ids, mask, labels = (part.repeat(copies, 1) for part in (batch.ids, batch.mask, batch.labels))
        with self.adapted(len(ids)):
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return loss_by_sequence(logits, labels).view(copies, -1)

    def step(self, batch: Batch, factor: float) -> Tensor:
        """Train one step at `factor` times each candidate's rate; return each one's mean loss before it; (N,)."""
        counted = (batch.labels[:, 1:] != IGNORED).sum(1)
        with frozen(self.model):
            # The mean over tokens, as a run's loss is.
            losses = (self.losses(batch) * counted).sum(1) / counted.sum().clamp(min=1)
            gradients = list(torch.autograd.grad(losses.sum(), self.leaves))
        with torch.no_grad():
            self.move(clipped(gradients), factor)
        return losses.detach()

    def move(self, gradients: list[Tensor], factor: float) -> None:
        """Take one step of Adam with these gradients of `leaves`, at `factor` times each candidate's rate."""
        self.taken += 1
        torch._foreach_lerp_(self.first, gradients, 1 - BETA)
        torch._foreach_mul_(self.second, GAMMA)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - GAMMA)
        roots = torch._foreach_sqrt(self.second)
        torch._foreach_div_(roots, math.sqrt(1 - GAMMA**self.taken))
        torch._foreach_add_(roots, EPSILON)
        moves = torch._foreach_div(self.first, roots)
        torch._foreach_mul_(moves, [self.rates * (-factor / (1 - BETA**self.taken))] * len(moves))
        torch._foreach_add_(self.leaves, moves)

    def evaluate(self, batches: Sequence[Batch]) -> Tensor:
        """Return every candidate's loss on each sequence of the batches; (N, S)."""
        with frozen(self.model), torch.no_grad():
            return torch.cat([self.losses(batch) for batch in batches], 1)

    @contextlib.contextmanager
    def adapted(self, rows: int) -> Iterator[None]:
        """Add every candidate's update to its copies of the batch inside the block; `rows` is the number of copies."""
        with contextlib.ExitStack() as hooks:
            for name, module in self.modules.items():
                hooks.callback(module.register_forward_hook(self.adding(name, rows)).remove)
            yield

    def adding(self, name: str, rows: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        """Return a forward hook that adds scale * B A x to a module's output, candidate by candidate.

        The hook raises UnknownArchitecture if the module does not see all `rows` sequences as (rows, tokens, features).
        """
        a, b, copies = self.a[name], self.b[name], len(self.lanes)

        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            if x.dim() != 3 or len(x) != rows:
                raise UnknownArchitecture(name)
            inner = torch.bmm(x.reshape(copies, -1, x.shape[-1]), a.to(x.dtype).mT)
            return output + self.scale * torch.bmm(inner, b.to(x.dtype).mT).view_as(output)

        return add


def width_of(name: str, lanes: Sequence[Lane]) -> int:
    """Return the highest rank of a module among the candidates."""
    return max(lane.ranks.get(name, 0) for lane in lanes)


def starting(name: str, module: nn.Module, lanes: Sequence[Lane], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return A (N, R, in) and B (N, out, R) before the first step, zero beyond each candidate's rank.

    A is the candidate's start value, or PEFT's: uniform in +-1/sqrt(in), the same draw for all candidates. B is zero.
    """
    out, inner = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
    width = width_of(name, lanes)
    uniform = (torch.rand(width, inner, generator=generator) * 2 - 1) / math.sqrt(inner)
    a = torch.zeros(len(lanes), width, inner)
    for place, lane in enumerate(lanes):
        rank = lane.ranks.get(name, 0)
        own = lane.start[name] if lane.start is not None and name in lane.start else uniform
        a[place, :rank] = own[:rank].to(a)
    return a, torch.zeros(len(lanes), out, width)


def clipped(gradients: list[Tensor]) -> list[Tensor]:
    """Scale each candidate's gradients to a norm of at most 1 over all its factors; in place."""
    squares = torch.stack([gradient.square().sum((1, 2)) for gradient in gradients]).sum(0)
    factor = (1.0 / (squares.sqrt() + 1e-6)).clamp(max=1.0)[:, None, None]
    torch._foreach_mul_(gradients, [factor] * len(gradients))
    return gradients
