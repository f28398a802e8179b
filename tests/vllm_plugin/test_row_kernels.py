"""The row kernels against products in float64, in both layouts of slots. Runs where there is a GPU."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SLOTS = (3, -1, 0, 0, 2, -1, 3, 4, 1)
SLOT_COUNT = 5
NEAR = {torch.float32: 1e-5, torch.bfloat16: 6e-3, torch.float16: 8e-4}


class Case:
    """A packed module with random slots, and what its rows must become."""

    def __init__(self, rank: int, wide: int, outs: tuple[int, ...], dtype: torch.dtype, *, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.slots = torch.tensor(SLOTS, dtype=torch.int32, device="cuda")
        self.ranks = torch.randint(0, rank + 1, (len(outs), SLOT_COUNT), dtype=torch.int32, device="cuda")
        self.downs = [torch.randn(SLOT_COUNT, rank, wide, device="cuda").to(dtype) for _ in outs]
        self.ups = [torch.randn(SLOT_COUNT, out, rank, device="cuda").to(dtype) for out in outs]
        for piece, ranks in enumerate(self.ranks.tolist()):
            for slot, own in enumerate(ranks):
                self.downs[piece][slot, own:] = 0
                self.ups[piece][slot, :, own:] = 0
        self.x = torch.randn(len(SLOTS), wide, device="cuda").to(dtype)
        self.inner = torch.full((len(outs), len(SLOTS), rank), float("nan"), device="cuda")

    def update(self) -> torch.Tensor:
        """(rows, all outputs) in float64."""
        has_adapter = (self.slots >= 0)[:, None]
        parts = []
        for down, up in zip(self.downs, self.ups, strict=True):
            inner = torch.bmm(self.x.double()[:, None], down[self.slots].double().mT)
            parts.append(has_adapter * torch.bmm(inner, up[self.slots].double().mT)[:, 0])
        return torch.cat(parts, dim=1)


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rank", [8, 16, 24, 64, 128, 512])
@pytest.mark.parametrize("outs", [(4096, 1024, 1024), (1536,), (96, 96), (64, 32, 32, 48)])
@pytest.mark.parametrize("knows_ranks", [True, False])
def test_rows_of_mixed_ranks_get_their_own_update(
    dtype: torch.dtype, rank: int, outs: tuple[int, ...], knows_ranks: bool
) -> None:
    from serving_client.vllm_plugin import row_kernels

    case = Case(rank, 576, outs, dtype)
    ranks = case.ranks if knows_ranks else None
    y = torch.randn(len(SLOTS), sum(outs), device="cuda").to(dtype)
    expected = y.double() + case.update()
    row_kernels.shrink(case.x, case.downs, case.inner, case.slots, ranks=ranks)
    row_kernels.expand(case.inner, case.ups, y, case.slots, ranks=ranks)
    assert error(y, expected) < NEAR[dtype]


def test_the_embedded_engines_layout_gives_the_same() -> None:
    from serving_client.vllm_plugin import row_kernels

    case = Case(16, 4096, (1024,), torch.bfloat16)
    y = torch.randn(len(SLOTS), 1, 1024, device="cuda", dtype=torch.bfloat16)
    expected = y[:, 0].double() + case.update()
    up = case.ups[0].mT.contiguous()
    actual = row_kernels.with_rows(case.x[:, None], y, case.downs[0], up, case.slots.long())
    assert error(actual[:, 0], expected) < NEAR[torch.bfloat16]


def test_what_is_written_instead_of_added_is_zero_without_an_adapter() -> None:
    from serving_client.vllm_plugin import row_kernels

    case = Case(16, 576, (96, 64), torch.float16)
    y = torch.full((len(SLOTS), 160), float("nan"), device="cuda", dtype=torch.float16)
    row_kernels.shrink(case.x, case.downs, case.inner, case.slots, ranks=case.ranks)
    row_kernels.expand(case.inner, case.ups, y, case.slots, ranks=case.ranks, adds=False)
    assert error(y, case.update()) < NEAR[torch.float16]
    assert not y[case.slots < 0].any()


def test_a_batch_without_adapters_ignores_slots_of_an_earlier_one() -> None:
    from serving_client.vllm_plugin import row_kernels

    case = Case(16, 576, (96,), torch.bfloat16)
    y = torch.randn(len(SLOTS), 96, device="cuda", dtype=torch.bfloat16)
    before = y.clone()
    nobody = torch.full((SLOT_COUNT + 1,), -1, dtype=torch.int32, device="cuda")
    row_kernels.shrink(case.x, case.downs, case.inner, case.slots, active=nobody)
    row_kernels.expand(case.inner, case.ups, y, case.slots, active=nobody)
    assert torch.equal(y, before)
    assert not case.inner.any()


def test_slots_that_nothing_wrote_are_not_followed() -> None:
    from serving_client.vllm_plugin import row_kernels

    case = Case(16, 576, (96,), torch.bfloat16)
    y = torch.randn(len(SLOTS), 96, device="cuda", dtype=torch.bfloat16)
    before = y.clone()
    row_kernels.shrink(case.x, case.downs, case.inner, case.slots + 2**30)
    row_kernels.expand(case.inner, case.ups, y, case.slots + 2**30)
    assert torch.equal(y, before)
