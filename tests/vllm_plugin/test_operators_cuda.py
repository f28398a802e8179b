"""The operators beside vLLM's own, on vLLM's own metadata. Runs where there are a GPU and vLLM."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("vllm")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SLOTS, RANK, WIDE, OUTS, ROWS = 4, 16, 1024, (512, 256, 256), 40
NEAR = 6e-3


@pytest.fixture(scope="module")
def operators() -> Any:
    from serving_client.vllm_plugin import operators

    operators.register()
    return operators


class Batch:
    """Slots as vLLM stacks them, and its metadata for rows that change between replays of a graph."""

    def __init__(self) -> None:
        from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta

        torch.manual_seed(0)
        self.downs = [torch.randn(SLOTS, 1, RANK, WIDE, device="cuda").bfloat16() for _ in OUTS]
        self.ups = [torch.randn(SLOTS, 1, out, RANK, device="cuda").bfloat16() for out in OUTS]
        self.x = torch.randn(ROWS, WIDE, device="cuda").bfloat16()
        self.weight = torch.randn(sum(OUTS), WIDE, device="cuda").bfloat16() * 0.1
        self.meta = LoRAKernelMeta.make(SLOTS, 512, "cuda")

    def prepare(self, slots: list[int]) -> torch.Tensor:
        self.slots = torch.tensor(slots, device="cuda")
        self.meta.prepare_tensors(self.slots)
        return self.slots

    def args(self, rows: int = ROWS) -> Any:
        return self.meta.meta_args(rows, specialize_active_lora=False)

    def expected(self) -> torch.Tensor:
        """Of the rows that `prepare` named."""
        rows = len(self.slots)
        x = self.x[:rows].double()
        parts = [
            torch.bmm(torch.bmm(x[:, None], down[self.slots, 0].double().mT), up[self.slots, 0].double().mT)[:, 0]
            for down, up in zip(self.downs, self.ups, strict=True)
        ]
        return x @ self.weight.double().T + (self.slots >= 0)[:, None] * torch.cat(parts, dim=1)

    def beside(self) -> torch.Tensor:
        """As a layer does it."""
        slots, _, _, _, active, has_none, _ = self.args()
        ops = torch.ops.adapterhub
        update = ops.lora_update_aside(self.x, self.downs, self.ups, slots, active, has_none)
        y = torch.nn.functional.linear(self.x, self.weight)
        ops.lora_add_joined(update, y, self.x, self.downs, self.ups, *self.args())
        return y


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("is_graph", [True, False])
def test_rows_change_between_replays_and_stale_ones_do_no_harm(operators: Any, is_graph: bool) -> None:
    batch = Batch()
    batch.prepare([row % 5 - 1 for row in range(ROWS)])
    batch.beside()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    if is_graph:
        with torch.cuda.graph(graph):
            y = batch.beside()
    for slots in ([3 - row % 4 for row in range(ROWS)], [2] * 33, [-1] * 7 + [1] * 20, [0]):
        batch.prepare(slots)
        if is_graph:
            graph.replay()
        else:
            y = batch.beside()
        assert error(y[: len(slots)], batch.expected()) < NEAR


def test_a_graph_with_adapters_serves_a_batch_without_any(operators: Any) -> None:
    batch = Batch()
    batch.prepare([row % 4 for row in range(ROWS)])
    batch.beside()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = batch.beside()
    batch.prepare([-1] * ROWS)
    graph.replay()
    assert error(y, batch.expected()) < NEAR


@pytest.mark.parametrize("rows", [40, 300])
def test_in_vllms_place_they_give_what_vllms_give(operators: Any, rows: int) -> None:
    """With an offset, as layers do that shard A and B; above the border vLLM's own run within."""
    batch = Batch()
    batch.prepare([row % 5 - 1 for row in range(rows)])
    x = torch.randn(rows, WIDE, device="cuda").bfloat16()
    results = []
    for shrink, expand in (
        (torch.ops.adapterhub.lora_shrink, torch.ops.adapterhub.lora_expand),
        (torch.ops.vllm.lora_shrink, torch.ops.vllm.lora_expand),
    ):
        inner = torch.zeros(len(OUTS), rows, RANK, device="cuda")
        y = torch.ones(rows, 64 + sum(OUTS), device="cuda").bfloat16()
        shrink(x, batch.downs, inner, *batch.args(rows), 1.0)
        expand(inner, batch.ups, y, *batch.args(rows), offset_start=64, add_inputs=True)
        results.append(y)
    assert error(results[0], results[1].double()) < NEAR
    assert (results[0][:, :64] == 1).all()


def test_prompts_and_large_batches_stay_with_vllms_tiles(operators: Any) -> None:
    slots = torch.zeros(1024, dtype=torch.int32, device="cuda")
    assert operators.takes_rows(slots[: operators.MOST_ROWS])
    assert not operators.takes_rows(slots[: operators.MOST_ROWS + 1])
    operators.note_batch(slots, decodes=False)
    assert not operators.takes_rows(slots[:32])
    operators.note_batch(slots, decodes=True)
    assert operators.takes_rows(slots[:32])


def test_a_batch_of_prompts_gets_what_vllms_tiles_give(operators: Any) -> None:
    batch = Batch()
    batch.prepare([row % 5 - 1 for row in range(ROWS)])
    operators.note_batch(batch.meta.token_lora_mapping, decodes=False)
    assert error(batch.beside(), batch.expected()) < NEAR
