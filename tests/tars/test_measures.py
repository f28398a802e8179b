"""Each measure against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal, kl_divergence

from training.tars.measures import (
    GradientSketch,
    OutputMoments,
    gaussian_divergence,
    output_shift,
    softmax_divergence,
    squared_norms,
)


@pytest.mark.parametrize(("length", "width", "out"), [(3, 40, 50), (60, 8, 9)])
def test_both_ways_to_the_norm_are_exact(length: int, width: int, out: int) -> None:
    inputs, gradients = torch.randn(2, length, width), torch.randn(2, length, out)
    expected = torch.stack([(g.mT @ x).square().sum() for x, g in zip(inputs, gradients, strict=True)])
    torch.testing.assert_close(squared_norms(inputs, gradients), expected.double(), rtol=1e-4, atol=0)


def test_the_sketch_finds_the_leading_spectrum_over_several_batches() -> None:
    torch.manual_seed(0)
    module = nn.Linear(120, 90)
    inputs = torch.randn(4, 30, 120) * torch.linspace(1, 0, 120) ** 4
    gradients = torch.randn(4, 30, 90) * torch.linspace(1, 0, 90) ** 4
    sketch = GradientSketch.of(module, 16, seed=1)
    for place in range(4):
        sketch.add(inputs[place : place + 1], gradients[place : place + 1])
    whole = gradients.flatten(0, 1).T @ inputs.flatten(0, 1)
    exact = torch.linalg.svdvals(whole.double())[:8]
    values, directions = sketch.spectrum(8)
    torch.testing.assert_close(values, exact, rtol=0.1, atol=0)
    captured = float((whole.double() @ directions.T).norm() / exact.norm())
    assert captured > 0.97


def test_a_gradient_of_low_rank_is_found_exactly() -> None:
    torch.manual_seed(0)
    sketch = GradientSketch.of(nn.Linear(50, 30), 16, seed=1)
    inputs, gradients = torch.randn(1, 3, 50), torch.randn(1, 3, 30)
    sketch.add(inputs, gradients)
    expected = torch.linalg.svdvals((gradients[0].T @ inputs[0]).double())
    values, _ = sketch.spectrum(16)
    torch.testing.assert_close(values[:3], expected[:3], rtol=1e-4, atol=0)
    assert float(values[3:].max()) < 1e-4 * float(values[0])


def test_gaussian_divergence_is_that_of_torch() -> None:
    torch.manual_seed(0)
    means, deviations = torch.randn(2, 40).double(), (torch.rand(2, 40) + 0.2).double()
    first, second = (Independent(Normal(m, d), 1) for m, d in zip(means, deviations, strict=True))
    expected = float(kl_divergence(first, second)) / 40
    moments = [(m, d.square()) for m, d in zip(means, deviations, strict=True)]
    assert gaussian_divergence(*moments) == pytest.approx(expected, rel=1e-9)
    assert gaussian_divergence(moments[0], moments[0]) == 0.0
    assert gaussian_divergence(*moments) != pytest.approx(gaussian_divergence(*reversed(moments)), rel=1e-3)


def test_a_channel_that_never_varies_leaves_the_divergence_finite() -> None:
    still, moving = torch.zeros(4).double(), torch.ones(4).double()
    assert gaussian_divergence((still, still), (moving, still)) < float("inf")


def test_softmax_divergence_and_output_shift_are_their_definitions() -> None:
    base, target = torch.randn(30), torch.randn(30)
    p, q = base.double().softmax(0), target.double().softmax(0)
    assert softmax_divergence(base, target) == pytest.approx(float((p * (p / q).log()).sum()))
    assert softmax_divergence(base, base) == 0.0
    assert output_shift(base, target) == pytest.approx(float((target - base).norm() / base.norm()))


def test_moments_of_halves_make_the_whole() -> None:
    torch.manual_seed(0)
    output, counted = torch.randn(4, 5, 7), (torch.rand(4, 5) > 0.3).float()
    moments = OutputMoments()
    for place in range(4):
        moments.add(output[place : place + 1], counted[place : place + 1], torch.tensor([place % 2]))
    for half, rows in ((None, slice(None)), (0, slice(0, 4, 2)), (1, slice(1, 4, 2))):
        values = output[rows][counted[rows] > 0].double()
        mean, variance = moments.of(half)
        torch.testing.assert_close(mean, values.mean(0), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(variance, values.var(0, unbiased=False), rtol=1e-4, atol=1e-6)
