"""Tiles of vLLM's own LoRA kernels, searched for the cell of 32 requests with 32 adapters of rank 16: `... FOLDER`.

The space is that of `vllm/lora/ops/triton_ops/README_TUNING.md`, within the bounds that a batch of one row for each
adapter leaves. Writes what `VLLM_TUNED_CONFIG_FOLDER` takes. Prefill keeps vLLM's default tiles.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from vllm.lora.ops.triton_ops import lora_expand_op, lora_shrink_op
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.lora.ops.triton_ops.utils import get_lora_op_configs

ROWS, SLOTS, RANK = 32, 32, 16
MODULES = {
    "qkv": (4096, (4096, 1024, 1024)),
    "o": (4096, (4096,)),
    "gate_up": (4096, (14336, 14336)),
    "down": (14336, (4096,)),
}
# Of so many bytes of weights a round: more than the cache holds.
ROUND_BYTES = 400_000_000
WORKERS = 14
COMMON = {"num_ctas": 1, "group_size_m": 8, "max_nreg": None}
SPACE: dict[str, list[dict[str, Any]]] = {
    "shrink": [
        {"block_m": 16, "block_n": 16, "block_k": block_k, "split_k": split, "num_warps": warps, "num_stages": stages}
        for block_k, split, warps, stages in itertools.product((64, 128, 256), (1, 4, 8, 16, 64), (4, 8), (2, 3))
    ],
    "expand": [
        {"block_m": 16, "block_n": block_n, "block_k": 16, "num_warps": warps, "num_stages": stages}
        for block_n, warps, stages in itertools.product((32, 64, 128, 256), (2, 4, 8), (2, 3))
    ],
}


class Module:
    """The slots of one packed module, several times over so that no repetition reads from the cache."""

    def __init__(self, wide: int, outs: tuple[int, ...], copies: int | None = None) -> None:
        bytes_ = (len(outs) * wide + sum(outs)) * RANK * 2 * SLOTS
        self.copies = copies or max(2, ROUND_BYTES // bytes_)
        make = {"dtype": torch.bfloat16, "device": "cuda"}
        self.downs = [[torch.randn(SLOTS, 1, RANK, wide, **make) for _ in outs] for _ in range(self.copies)]
        self.ups = [[torch.randn(SLOTS, 1, out, RANK, **make) for out in outs] for _ in range(self.copies)]
        self.x = torch.randn(ROWS, wide, **make)
        self.inner = torch.zeros(len(outs), ROWS, RANK, device="cuda")
        self.y = torch.zeros(ROWS, sum(outs), **make)
        batch = LoRAKernelMeta.make(SLOTS, ROWS, "cuda")
        batch.prepare_tensors(torch.arange(ROWS, device="cuda") % SLOTS)
        self.batch = batch.meta_args(ROWS, specialize_active_lora=False)

    def run(self, kind: str, tile: dict[str, Any], copies: int | None = None) -> None:
        for module in (lora_shrink_op, lora_expand_op):
            module.get_lora_op_configs = lambda *_, **__: COMMON | tile
        for number in range(copies or self.copies):
            if kind == "shrink":
                lora_shrink_op._lora_shrink(self.x, self.downs[number], self.inner, *self.batch, 1.0)
            else:
                lora_expand_op._lora_expand(self.inner, self.ups[number], self.y, *self.batch, 0, True)


def microseconds(work: Callable[[], None]) -> float:
    """Of one replay of a graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    times = []
    for _ in range(5):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 500)
    return median(times)


def compile_share(worker: int) -> None:
    """Fill Triton's cache with this worker's share of all tiles."""
    jobs = [(shape, kind, tile) for shape in MODULES.values() for kind, tiles in SPACE.items() for tile in tiles]
    for shape, kind, tile in jobs[worker::WORKERS]:
        Module(*shape, copies=1).run(kind, tile)
    torch.cuda.synchronize()


def search() -> dict[str, dict[str, Any]]:
    """Kind -> slices -> rows -> k -> n -> tile, as vLLM nests them below the number of slots."""
    best: dict[str, dict[str, Any]] = {"shrink": {}, "expand": {}}
    for name, (wide, outs) in MODULES.items():
        module = Module(wide, outs)
        for kind, tiles in SPACE.items():
            times = [
                (microseconds(partial(module.run, kind, tile)) / module.copies, place)
                for place, tile in enumerate(tiles)
            ]
            best_time, place = min(times)
            sizes = (wide, RANK) if kind == "shrink" else (RANK, max(outs))
            common = {
                "max_loras": SLOTS + 1,
                "hidden_size": sizes[kind == "expand"],
                "rank": RANK,
                "num_slices": len(outs),
            }
            default = get_lora_op_configs(kind, batch=ROWS, add_inputs=True, **common)
            stock = microseconds(partial(module.run, kind, default)) / module.copies
            sys.stdout.write(f"{name} {kind}: {best_time:.1f} us, vLLM's default {stock:.1f}; {tiles[place]}\n")
            rows = best[kind].setdefault(str(len(outs)), {})
            prefill = get_lora_op_configs(kind, batch=8192, add_inputs=True, **common)
            for count, tile in ((ROWS, COMMON | tiles[place]), (2048, prefill), (8192, prefill)):
                rows.setdefault(str(count), {}).setdefault(str(sizes[0]), {})[str(sizes[1])] = tile
    return best


def main() -> None:
    if sys.argv[1] == "--compile":
        compile_share(int(sys.argv[2]))
        return
    folder = Path(sys.argv[1])
    workers = [subprocess.Popen([sys.executable, __file__, "--compile", str(worker)]) for worker in range(WORKERS)]  # noqa: S603
    for worker in workers:
        worker.wait()
    tiles = search()
    folder.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.get_device_name().replace(" ", "_").replace("-", "_")
    for kind, name in (("shrink", "SHRINK"), ("expand", "EXPAND_TRUE")):
        (folder / f"{gpu}_{name}.json").write_text(json.dumps({str(SLOTS + 1): tiles[kind]}, indent=1))


if __name__ == "__main__":
    main()
