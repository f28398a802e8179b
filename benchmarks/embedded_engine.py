"""One embedded engine as a process, for `vllm_adapters.py`: a cell a line on standard input, its figures out.

    python benchmarks/embedded_engine.py '{"model": DIR, "slots": 32, "rank": 16, "rows": 32, ...}'

The counterpart of `vllm_engine.py`, with the same prompts and the same figures: requests go through the generation loop
as the server's do, without HTTP and without a tokenizer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# The package's own __init__ wants the router's libraries, which a machine with a GPU may lack.
sys.modules["serving_client"] = types.ModuleType("serving_client")
sys.modules["serving_client"].__path__ = [str(ROOT / "serving_client")]

from benchmarks.engine_figures import answer, figures, prompt_of  # noqa: E402
from serving_client.engine.adapters.adapter import Adapter, read_adapter  # noqa: E402
from serving_client.engine.batching.batch import RunningBatch  # noqa: E402
from serving_client.engine.batching.loop import GenerationLoop  # noqa: E402
from serving_client.engine.batching.sampling import SamplingParams  # noqa: E402
from serving_client.engine.batching.sequence import Delta, Sequence  # noqa: E402


class NoText:
    """A decoder in place of a tokenizer."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return ""


class Client:
    """Asks one engine for cells."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(settings["model"])
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda"):
            model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        torch.set_default_dtype(torch.float32)
        self._vocabulary: int = settings["vocabulary"]
        self._rank: int = settings["rank"]
        self._batch = RunningBatch(model, max_loras=settings["slots"], ends=frozenset())
        self._loop = GenerationLoop(self._batch, max_batch=settings["rows"])
        self._adapters: dict[int, Adapter] = {}
        self._loop.start()

    async def cell(self, cell: dict[str, Any]) -> dict[str, Any]:
        """`rows` requests at once that take turns over the adapters' folders (none: the base model)."""
        folders = cell["folders"]
        adapters = [self._adapter(number, folder) for number, folder in enumerate(folders)]
        prompts = [prompt_of(row, cell["prompt"], self._vocabulary) for row in range(cell["rows"])]
        chosen = [adapters[row % len(adapters)] if adapters else None for row in range(cell["rows"])]
        began = time.perf_counter()
        times = await asyncio.gather(
            *(self._ask(prompt, cell, adapter) for prompt, adapter in zip(prompts, chosen, strict=True))
        )
        return figures(times, began, time.perf_counter() - began, cell)

    def _adapter(self, number: int, folder: str) -> Adapter:
        if number not in self._adapters:
            self._adapters[number] = read_adapter(
                f"adapter-{number}",
                Path(folder),
                self._batch.module_shapes,
                max_rank=self._rank,
                dtype=torch.bfloat16,
                is_pinned=True,
            )
        return self._adapters[number]

    async def _ask(self, prompt: list[int], cell: dict[str, Any], adapter: Adapter | None) -> list[tuple[float, int]]:
        """Return (when, tokens) of each delta."""
        deltas: asyncio.Queue[Delta] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        params = SamplingParams(max_tokens=cell["tokens"], temperature=0, ignore_eos=True)

        def tell(delta: Delta) -> None:
            loop.call_soon_threadsafe(deltas.put_nowait, delta)

        self._loop.submit(Sequence(prompt, params, adapter, NoText(), tell))
        times: list[tuple[float, int]] = []
        while True:
            delta = await deltas.get()
            if delta.failure:
                raise RuntimeError(delta.failure)
            times.append((time.perf_counter(), len(delta.token_ids)))
            if delta.is_last:
                return times


async def main() -> None:
    began = time.perf_counter()
    settings = json.loads(sys.argv[1])
    client = Client(settings)
    answer({"ready_s": time.perf_counter() - began})
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer(await client.cell(json.loads(line)))


if __name__ == "__main__":
    asyncio.run(main())
