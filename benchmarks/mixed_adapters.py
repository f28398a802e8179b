"""Decode speed of the embedded engine when one batch mixes adapters.

    python benchmarks/mixed_adapters.py --out benchmarks/results/mixed_adapters.json
    python benchmarks/mixed_adapters.py --device cuda --shape 8b --out benchmarks/results/mixed_adapters_h100.json

Against the base model alone, PEFT's `adapter_names`, and a server that merges one adapter at a time; then 2,000
registered adapters, asked for by Zipf's law, against 5. Random Llamas of rank 16 on all linear modules, so that nothing
has to be downloaded; needs torch, transformers, peft and safetensors only. A speed is that of the best of some decode
steps; the sides take turns, so that a busy machine slows all of them.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# The package's own __init__ wants the router's libraries, which a machine with a GPU may lack.
sys.modules["serving_client"] = types.ModuleType("serving_client")
sys.modules["serving_client"].__path__ = [str(ROOT / "serving_client")]

from benchmarks.report import Row, arguments, publish  # noqa: E402
from serving_client.engine.adapters.adapter import Adapter, LowRank, read_adapter  # noqa: E402
from serving_client.engine.adapters.pool import AdapterPool  # noqa: E402
from serving_client.engine.batching.batch import RunningBatch  # noqa: E402
from serving_client.engine.batching.loop import GenerationLoop  # noqa: E402
from serving_client.engine.batching.sampling import SamplingParams  # noqa: E402
from serving_client.engine.batching.sequence import Delta, Sequence  # noqa: E402

PROMPT, RANK = 32, 16
COUNTS = (1, 8, 32, 128)
PEFT_COUNTS = (1, 8, 32)
GOALS = {"base": 0.8, "peft": 5.0, "merging": 30.0, "registered": 0.9}
# Tokens of an answer: a merge is paid once for each.
ANSWER = 32
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
}
# What serves the 2,000: slots, adapters in memory, distinct folders behind the names, clients and their requests.
SLOTS, IN_MEMORY, FOLDERS, CLIENTS, REQUESTS, TOKENS = 32, 500, 50, 40, 200, 16
ROUNDS = 5  # of both, in turn; the best counts
SMALL_RANK, SMALL_MODULES = 8, ("q_proj", "v_proj")


class Numbers:
    """A decoder that needs no tokenizer."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


class Bench:
    """The model's shape and place."""

    def __init__(self, shape: str, device: str, layers: int | None) -> None:
        self.shape = {**SHAPES[shape], **({"num_hidden_layers": layers} if layers else {})}
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def model(self) -> LlamaForCausalLM:
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        try:
            with self.device:
                built = LlamaForCausalLM(LlamaConfig(**self.shape, max_position_embeddings=2048))
        finally:
            torch.set_default_dtype(torch.float32)
        return built.eval().requires_grad_(False)

    def prompts(self, count: int) -> torch.Tensor:
        return torch.randint(0, self.shape["vocab_size"], (count, PROMPT))

    def seconds(self, step: Callable[[], object]) -> float:
        began = time.perf_counter()
        step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def step_seconds(
    bench: Bench, batch: RunningBatch, adapters: list[Adapter | None], rows: int, steps: int
) -> list[float]:
    """Of `rows` requests that take turns over the adapters; the first step reads the prompts."""
    chosen = [adapters[number % len(adapters)] for number in range(rows)]
    for adapter in chosen:
        if adapter:
            batch.residents.admit(adapter, set())
    params = SamplingParams(max_tokens=10**6, temperature=0)
    running = [
        Sequence(ids, params, adapter, Numbers(), lambda _: None)
        for ids, adapter in zip(bench.prompts(rows).tolist(), chosen, strict=True)
    ]
    batch.join(running)
    times = [bench.seconds(batch.step) for _ in range(steps)]
    for sequence in running:
        sequence.cancel()
    batch.drop_finished()
    return times


def engine_speed(bench: Bench, batch: RunningBatch, adapters: list[Adapter | None], rows: int, steps: int) -> float:
    """Tokens a second."""
    return rows / min(step_seconds(bench, batch, adapters, rows, steps))


def shared_adapters(batch: RunningBatch, count: int, dtype: torch.dtype) -> list[Adapter]:
    """Each has a slot of its own; what is copied into the slots is the same."""
    weights = {
        name: LowRank(*(torch.randn(RANK, size, dtype=dtype) * 0.01 for size in shape))
        for name, shape in batch.module_shapes.items()
    }
    return [Adapter(f"adapter-{number}", weights) for number in range(count)]


class Peft:
    """The same base with as many adapters of the same size in PEFT."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.bench = bench
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS, task_type="CAUSAL_LM")
        self.names = [f"adapter-{number}" for number in range(count)]
        self.model: Any = get_peft_model(bench.model(), config, adapter_name=self.names[0])
        for name in self.names[1:]:
            self.model.add_adapter(name, config)
        self.model.eval().requires_grad_(False)

    def steps(self, rows: int, **fields: Any) -> Iterator[Callable[[], None]]:
        """Decode steps of so many requests."""
        cache = DynamicCache()
        tokens = self.bench.prompts(rows).to(self.bench.device)

        def step() -> None:
            nonlocal tokens
            logits = self.model(
                input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **fields
            ).logits
            tokens = logits[:, -1:].argmax(-1)

        step()
        while True:
            yield step

    def speed(self, adapters: int, rows: int, count: int) -> float:
        """Tokens a second with `adapter_names`."""
        names = [self.names[row % adapters] for row in range(rows)]
        steps = self.steps(rows, adapter_names=names)
        return rows / min(self.bench.seconds(next(steps)) for _ in range(count))

    def merging(self, count: int) -> float:
        """Tokens a second of a server that merges, answers one request, and takes the adapter out again."""

        def answer_each() -> None:
            for name in self.names[:count]:
                self.model.merge_adapter([name])
                steps = self.steps(1)
                for _ in range(ANSWER - 1):
                    next(steps)()
                self.model.unmerge_adapter()

        return count * ANSWER / self.bench.seconds(answer_each)


def registered_speed(bench: Bench, loop: GenerationLoop, pool: AdapterPool, names: list[str], requests: int) -> float:
    """Tokens a second when clients ask for names by Zipf's law: the n-th name 1/n as often as the first."""
    dice = random.Random(0)
    chosen_names = dice.choices(names, [1 / (place + 1) for place in range(len(names))], k=requests)
    prompts = bench.prompts(requests).tolist()

    def send_request(number: int) -> None:
        ended = threading.Event()

        def tell(delta: Delta) -> None:
            if delta.is_last:
                ended.set()

        params = SamplingParams(max_tokens=TOKENS, temperature=0)
        loop.submit(Sequence(prompts[number], params, pool.get(chosen_names[number]), Numbers(), tell))
        ended.wait()

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(send_request, range(requests)))
    return requests * TOKENS / (time.perf_counter() - began)


def write_folders(batch: RunningBatch, root: Path) -> list[Path]:
    """Adapters on disk as PEFT writes them."""
    config = {"peft_type": "LORA", "r": SMALL_RANK, "lora_alpha": SMALL_RANK, "target_modules": list(SMALL_MODULES)}
    folders = [root / str(number) for number in range(FOLDERS)]
    for folder in folders:
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(
            {
                f"base_model.model.{name}.lora_{side}.weight": torch.randn(size) * 0.01
                for name, (wide, out) in batch.module_shapes.items()
                if name.endswith(SMALL_MODULES)
                for side, size in (("A", (SMALL_RANK, wide)), ("B", (out, SMALL_RANK)))
            },
            folder / "adapter_model.safetensors",
        )
    return folders


def registered(bench: Bench, many: int, requests: int) -> Row:
    batch = RunningBatch(bench.model(), max_loras=SLOTS, ends=frozenset())
    read = partial(
        read_adapter, base=batch.module_shapes, max_rank=RANK, dtype=bench.dtype, is_pinned=bench.device.type == "cuda"
    )
    pool = AdapterPool("base", read, max_in_memory=IN_MEMORY)
    loop = GenerationLoop(batch, max_batch=SLOTS)
    with tempfile.TemporaryDirectory(prefix="adapterhub-bench-") as name:
        folders = write_folders(batch, Path(name))
        names = [f"adapter-{number}" for number in range(many)]
        for number, adapter in enumerate(names):
            pool.load(adapter, str(folders[number % FOLDERS]))
        loop.start()
        best: dict[int, float] = defaultdict(float)
        for _ in range(ROUNDS):
            for count in (5, many):
                best[count] = max(best[count], registered_speed(bench, loop, pool, names[:count], requests))
        loop.close()
    label = f"tokens/s, {many:,} registered adapters against 5"
    return Row(label, best[many], best[5], best[many] / best[5], GOALS["registered"])


@torch.inference_mode()
def speeds(bench: Bench, counts: tuple[int, ...], steps: int, rounds: int) -> list[Row]:
    batch = RunningBatch(bench.model(), max_loras=max(counts), ends=frozenset())
    adapters = shared_adapters(batch, max(counts), bench.dtype)
    peft_counts = [count for count in PEFT_COUNTS if count <= max(counts)]
    peft = Peft(bench, max(peft_counts))
    best: dict[Any, float] = defaultdict(float)

    def take(key: Any, speed: float) -> None:
        best[key] = max(best[key], speed)

    for _ in range(rounds):
        for rows in sorted({rows_for(count) for count in counts}):
            take(("base", rows), engine_speed(bench, batch, [None], rows, steps))
        for count in counts:
            take(("ours", count), engine_speed(bench, batch, adapters[:count], rows_for(count), steps))
        for count in peft_counts:
            take(("peft", count), peft.speed(count, rows_for(count), max(2, steps // 4)))
        take("merging", peft.merging(2))
    rows = [
        against(
            f"{rows_for(count)} requests, {adapters_of(count)}, against base",
            best["ours", count],
            best["base", rows_for(count)],
            GOALS["base"] if count == 32 else None,
        )
        for count in counts
    ]
    rows += [
        against(
            f"{rows_for(count)} requests, {adapters_of(count)}, against PEFT's adapter_names",
            best["ours", count],
            best["peft", count],
            GOALS["peft"] if count == 32 else None,
        )
        for count in peft_counts
    ]
    last = max(peft_counts)
    return [
        *rows,
        against(
            f"{rows_for(last)} requests, {adapters_of(last)}, against merging one at a time",
            best["ours", last],
            best["merging"],
            GOALS["merging"],
        ),
    ]


def rows_for(adapters: int) -> int:
    return max(32, adapters)


def adapters_of(count: int) -> str:
    return "one adapter" if count == 1 else f"{count} adapters"


def against(what: str, ours: float, peer: float, goal: float | None) -> Row:
    return Row(f"tokens/s, {what}", ours, peer, ours / peer, goal)


def main() -> None:
    options = arguments(__doc__ or "", "device", "shape", "layers")
    layers = int(options.layers) if options.layers else 2 if options.short else None
    bench = Bench(options.shape or "smollm2", options.device or "cpu", layers)
    counts = (1, 8) if options.short else COUNTS
    rows = speeds(bench, counts, *((3, 1) if options.short else (12, 2)))
    rows.append(registered(bench, 100 if options.short else 2000, 40 if options.short else REQUESTS))
    publish("mixed_adapters", rows, options.out)


if __name__ == "__main__":
    main()
