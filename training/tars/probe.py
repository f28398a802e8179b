"""A probe: a few real LoRA steps at one uniform rank, which show the size of the update that each module makes.

Under Adam the size of an update does not follow the size of the gradient; a module's first steps predict far better
where ranks will be needed (docs/benchmarks.md, tars_signals). The base model is left unchanged.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.tars.signals import Batch, LossNotFinite, frozen, loss_by_sequence

# Steps over which the learning rate rises to its value.
WARMUP = 3
# Losses at the end of a probe that are averaged to compare rates.
TAIL = 3


@dataclass(frozen=True)
class Probe:
    """Result of a probe.

    It has the learning `rate`, the `losses` in nats, one per step, and by module in `spectra` the singular values of B
    A, descending.
    """

    rate: float
    losses: list[float]
    spectra: dict[str, list[float]]

    @property
    def reached(self) -> float:
        """Return the mean of the last TAIL losses; infinite if it is not finite, as when the rate was too high."""
        tail = self.losses[-TAIL:]
        loss = sum(tail) / len(tail)
        return loss if math.isfinite(loss) else math.inf


@dataclass
class Factors:
    """A module's LoRA factors in float32: A (r, in) and B (out, r)."""

    a: Tensor
    b: Tensor

    @classmethod
    def of(cls, module: nn.Module, rank: int, generator: torch.Generator, device: torch.device) -> Factors:
        """Return PEFT's start values on the device, which collect gradients: A uniform in ±1/sqrt(in), B zero."""
        width, out = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
        uniform = (torch.rand(rank, width, generator=generator) * 2 - 1) / math.sqrt(width)
        return cls(uniform.to(device).requires_grad_(), torch.zeros(out, rank, device=device).requires_grad_())

    def spectrum(self) -> list[float]:
        """Return the singular values of B A, descending, to six decimals, without forming a matrix (out, in)."""
        left, right = (torch.linalg.qr(part.detach().double().cpu())[1] for part in (self.b, self.a.T))
        return [round(float(value), 6) for value in torch.linalg.svdvals(left @ right.T)]


def probe(
    model: nn.Module,
    modules: dict[str, nn.Module],
    batches: Sequence[Batch],
    *,
    steps: int,
    rank: int,
    rate: float,
    scale: float,
    seed: int,
    done: Callable[[], None] = lambda: None,
) -> Probe:
    """Train LoRA factors of `rank` for `steps` steps at `rate`, and return their losses and spectra.

    The rate rises over the first WARMUP steps. Batches are repeated if there are fewer than steps; `done` is called
    after each step; the model is left as it was. Raises LossNotFinite if the first step's loss is not finite.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    factors = {name: Factors.of(module, rank, generator, device) for name, module in modules.items()}
    parameters = [part for pair in factors.values() for part in (pair.a, pair.b)]
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    losses = []
    with frozen(model), adapted(modules, factors, scale):
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / WARMUP)
            losses.append(one_step(model, batches[step % len(batches)], optimiser, parameters))
            done()
    if not math.isfinite(losses[0]):
        raise LossNotFinite
    return Probe(rate, losses, {name: pair.spectrum() for name, pair in factors.items()})


def one_step(model: nn.Module, batch: Batch, optimiser: torch.optim.Optimizer, parameters: list[Tensor]) -> float:
    """Train one step on the batch, with gradients clipped to a norm of 1; return the loss before the step."""
    logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).logits
    loss = loss_by_sequence(logits, batch.labels).mean()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimiser.step()
    return float(loss.detach())


@contextlib.contextmanager
def adapted(modules: dict[str, nn.Module], factors: dict[str, Factors], scale: float) -> Iterator[None]:
    """Add scale * B A x to every module's output inside the block."""
    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(adding(factors[name], scale)).remove)
        yield


def adding(pair: Factors, scale: float) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """Return a forward hook that adds scale * B A x to a module's output."""

    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        return output + scale * (x @ pair.a.to(x.dtype).T) @ pair.b.to(x.dtype).T

    return add
