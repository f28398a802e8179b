"""Running sums by module in a pass over data; gradient norms take one number per sequence, the others a fixed size.

X (T, in) is a module's input, D (T, out) the gradient of its output, G = D'X the gradient of its weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.tars import distributed

HALVES = 2
# More directions than asked for: the error of a sketch falls quickly with a few.
OVERSAMPLING = 8
# A channel that never varies has no distribution: its variance counts as this share of the median channel's.
VARIANCE_FLOOR = 1e-6


def squared_norms(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Return each sequence's squared Frobenius norm of D'X, by the cheaper of two exact ways.

    Shapes: (B, T, in), (B, T, out) -> (B,). One way, sum(XX' * DD'), never forms G (the ghost norm of Goodfellow,
    arXiv:1510.01799). Products are computed in the dtype of `inputs`.
    """
    length, width, out = inputs.shape[1], inputs.shape[2], gradients.shape[2]
    gradients = gradients.to(inputs.dtype)
    if length * (width + out) < width * out:
        products = (inputs @ inputs.mT).float() * (gradients @ gradients.mT).float()
        return products.sum((1, 2)).double().clamp(min=0)
    return (gradients.mT @ inputs).float().square().sum((1, 2)).double()


@dataclass
class GradientNorms:
    """The squared Frobenius norms of the gradients, one per sequence, in the order of the batches."""

    squares: list[Tensor] = field(default_factory=list)

    def add(self, inputs: Tensor, gradients: Tensor) -> None:
        """Add the squared gradient norms of a batch of inputs (B, T, in) and gradients (B, T, out)."""
        self.squares.append(squared_norms(inputs, gradients))

    def values(self) -> Tensor:
        """Return the squared norms (sequences,) on the CPU.

        Only this transfers them, so that no batch waits for a transfer.
        """
        return torch.cat(self.squares).cpu()


@dataclass
class GradientSketch:
    """A one-pass sketch of the leading spectrum of the summed G, from random projections on both sides.

    Y = G R (out, s) and Z = L G (2s, in); then G ~ Q (L Q)^+ Z with Q an orthonormal basis of Y
    (Tropp, Yurtsever, Udell and Cevher, arXiv:1609.00048, algorithm 4).
    """

    right: Tensor  # R: (in, s)
    left: Tensor  # L: (2s, out)
    y: Tensor | None = None
    z: Tensor | None = None

    @classmethod
    def of(cls, module: nn.Module, rank: int, seed: int) -> GradientSketch:
        """Return an empty sketch for the `rank` leading directions of a linear module's gradient."""
        width, out = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
        size = min(rank + OVERSAMPLING, width, out)
        return cls(gaussian(width, size, seed), gaussian(out, min(2 * size, out), seed + 1).T)

    def add(self, inputs: Tensor, gradients: Tensor) -> None:
        """Add a batch of inputs (B, T, in) and output gradients (B, T, out)."""
        x, d = inputs.flatten(0, 1), gradients.flatten(0, 1).to(inputs.dtype)
        self.right, self.left = self.right.to(x), self.left.to(x)
        y, z = (d.T @ (x @ self.right)).float(), ((self.left @ d.T) @ x).float()
        self.y = y if self.y is None else self.y.add_(y)
        self.z = z if self.z is None else self.z.add_(z)

    def merge(self) -> None:
        """Add up the sketches of all processes, in place; all must have used the same seed. A collective call."""
        distributed.add_up(self.y, self.z)

    def spectrum(self, count: int) -> tuple[Tensor, Tensor]:
        """Return at most `count` singular values, descending, and their right singular vectors (count, in).

        They are float64, on the CPU. Raises ValueError if no gradient was added.
        """
        if self.y is None or self.z is None:
            raise ValueError("No gradients were added.")
        basis = torch.linalg.qr(self.y)[0]
        core = pseudo_inverse(self.left.float() @ basis) @ self.z
        directions, triangle = torch.linalg.qr(core.T)
        values, vectors = torch.linalg.svd(triangle.T.double().cpu(), full_matrices=False)[1:]
        return values[:count], (vectors[:count].to(directions) @ directions.T).double().cpu()


def pseudo_inverse(tall: Tensor) -> Tensor:
    """Return the pseudo-inverse (n, m) of a matrix (m, n) with m >= n; directions near zero are dropped.

    Only the small triangle of its QR decomposition is copied to the CPU.
    """
    orthogonal, triangle = torch.linalg.qr(tall)
    inverse: Tensor = torch.linalg.pinv(triangle.double().cpu(), rtol=1e-6)
    pseudo: Tensor = inverse.to(orthogonal) @ orthogonal.T
    return pseudo


def gaussian(rows: int, columns: int, seed: int) -> Tensor:
    """Return a (rows, columns) matrix of standard normal numbers that the seed fixes."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@dataclass
class OutputMoments:
    """Float64 sums of a module's outputs and of their squares over the counted tokens, for each half of the sample."""

    sums: Tensor | None = None  # (HALVES, out)
    squares: Tensor | None = None  # (HALVES, out)
    tokens: Tensor | None = None  # (HALVES,)

    def add(self, output: Tensor, counted: Tensor, half: Tensor) -> None:
        """Add outputs (B, T, out) with token weights (B, T) and the half, 0 or 1, of each sequence (B,)."""
        wide, weights = output.float(), counted.unsqueeze(1)
        halves = functional.one_hot(half, HALVES).double().T  # (HALVES, B)
        batch_sums = (
            halves @ (weights @ wide).squeeze(1).double(),
            halves @ (weights @ wide.square()).squeeze(1).double(),
            halves @ counted.double().sum(1),
        )
        if self.sums is None or self.squares is None or self.tokens is None:
            self.sums, self.squares, self.tokens = batch_sums
        else:
            self.sums, self.squares, self.tokens = (
                self.sums + batch_sums[0],
                self.squares + batch_sums[1],
                self.tokens + batch_sums[2],
            )

    def merge(self) -> None:
        """Add up the sums of all processes, in place. A collective call."""
        distributed.add_up(self.sums, self.squares, self.tokens)

    def of(self, half: int | None = None) -> tuple[Tensor, Tensor]:
        """Return (mean, variance) of each channel, (out,) each, over one half (0 or 1) of the sample; None takes both.

        Raises ValueError if no output was added.
        """
        if self.sums is None or self.squares is None or self.tokens is None:
            raise ValueError("No outputs were added.")
        parts = slice(None) if half is None else slice(half, half + 1)
        tokens = self.tokens[parts].sum().clamp(min=1)
        mean = self.sums[parts].sum(0) / tokens
        return mean, (self.squares[parts].sum(0) / tokens - mean.square()).clamp(min=0)


def softmax_divergence(base: Tensor, target: Tensor) -> float:
    """Return KL(softmax(base) || softmax(target)) in nats, at least 0, of a module's mean outputs, (out,) each."""
    log_base, log_target = base.double().log_softmax(0), target.double().log_softmax(0)
    return max(0.0, float((log_base.exp() * (log_base - log_target)).sum()))


def gaussian_divergence(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> float:
    """Return KL(first || second) in nats per channel of diagonal Gaussians given as (mean, variance).

    It is 0.5 * (ln(v2 / v1) + (v1 + (m1 - m2)^2) / v2 - 1), averaged over channels, so that widths are comparable.
    Variances are at least VARIANCE_FLOOR of the median.
    """
    (mean, variance), (other_mean, other) = first, second
    floor = VARIANCE_FLOOR * torch.cat((variance, other)).median().clamp(min=1e-12)
    variance, other = variance.clamp(min=floor), other.clamp(min=floor)
    terms = (other / variance).log() + (variance + (mean - other_mean).square()) / other - 1
    return max(0.0, 0.5 * float(terms.mean()))


def output_shift(base: Tensor, target: Tensor) -> float:
    """Return |target - base| / |base|, the relative change of a module's mean outputs, (out,) each."""
    return float((target - base).norm() / base.norm().clamp(min=1e-12))
