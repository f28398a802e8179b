"""One vLLM engine as a process of its own, for `vllm_adapters.py`: a cell a line on standard input, its figures out.

    python benchmarks/vllm_engine.py '{"model": DIR, "slots": 32, "rank": 16, "rows": 32, ...}'

Requests go through AsyncLLM as a server's do, without HTTP and without a tokenizer.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
os.environ["VLLM_NO_USAGE_STATS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.engine_figures import Times, answer, figures, prompt_of


def started(settings: dict[str, Any]) -> AsyncLLM:
    graphs = {"cudagraph_capture_sizes": [size for size in (1, 8, 32, 64, 128, 256) if size <= settings["rows"]]}
    return AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=settings["model"],
            skip_tokenizer_init=True,
            load_format=settings.get("load_format", "dummy"),
            dtype=settings.get("dtype", "bfloat16"),
            max_model_len=1024,
            max_num_seqs=settings["rows"],
            max_num_batched_tokens=8192,
            enable_lora=True,
            max_loras=settings["slots"],
            max_cpu_loras=settings["slots"],
            max_lora_rank=settings["rank"],
            enable_prefix_caching=False,
            gpu_memory_utilization=0.1,
            kv_cache_memory_bytes=settings["cache_gb"] << 30,
            disable_log_stats=True,
            compilation_config=graphs,
        )
    )


class Client:
    """Asks one engine for cells."""

    def __init__(self, engine: AsyncLLM, vocabulary: int) -> None:
        self._engine, self._vocabulary, self._asked = engine, vocabulary, 0

    async def cell(self, cell: dict[str, Any]) -> dict[str, Any]:
        """`rows` requests at once that take turns over the adapters' folders (none: the base model)."""
        prompts = cell.get("prompts") or [
            prompt_of(row, cell["prompt"], self._vocabulary) for row in range(cell["rows"])
        ]
        folders = cell["folders"]
        names = [row % len(folders) if folders else None for row in range(cell["rows"])]
        began = time.perf_counter()
        streams = await asyncio.gather(
            *(self._ask(prompt, cell, name, folders) for prompt, name in zip(prompts, names, strict=True))
        )
        seconds = time.perf_counter() - began
        taken = figures([times for times, _ in streams], began, seconds, cell)
        return taken | {"answers": [stream[1] for stream in streams]} if cell.get("answers") else taken

    async def _ask(
        self, prompt: list[int], cell: dict[str, Any], name: int | None, folders: list[str]
    ) -> tuple[Times, list[Any]]:
        """(when, tokens) of each delta, and the tokens; with `answers` also the two best log-probabilities of each."""
        self._asked += 1
        params = SamplingParams(
            temperature=0,
            max_tokens=cell["tokens"],
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            logprobs=2 if cell.get("answers") else None,
        )
        adapter = None if name is None else LoRARequest(f"adapter-{name}", name + 1, folders[name])
        times: Times = []
        tokens: list[Any] = []
        async for output in self._engine.generate(
            {"prompt_token_ids": prompt}, params, f"request-{self._asked}", lora_request=adapter
        ):
            answer = output.outputs[0]
            times.append((time.perf_counter(), len(answer.token_ids)))
            if cell.get("answers"):
                best = [sorted((one.logprob for one in each.values()), reverse=True)[:2] for each in answer.logprobs]
                tokens += list(zip(answer.token_ids, best, strict=True))
        return times, tokens


async def main() -> None:
    settings = json.loads(sys.argv[1])
    began = time.perf_counter()
    engine = started(settings)
    client = Client(engine, settings["vocabulary"])
    answer({"ready_s": time.perf_counter() - began})
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer(await client.cell(json.loads(line)))
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
