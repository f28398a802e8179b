"""Decode speed of the embedded engine when one batch mixes adapters, against the base model alone.

    python benchmarks/mixed_adapters.py --out benchmarks/results/mixed_adapters.json

A random Llama of SmolLM2-135M's shape, so that nothing has to be downloaded. Every figure is the best of several decode
steps of 16 requests, in tokens a second. Rounds are interleaved, so that a busy machine slows both sides.
"""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from report import Row, arguments, publish
from transformers import LlamaConfig, LlamaForCausalLM

from serving_client.engine.adapter import Adapter, LowRank
from serving_client.engine.batch import RunningBatch
from serving_client.engine.sampling import SamplingParams
from serving_client.engine.sequence import Sequence

REQUESTS, PROMPT, RANK, ADAPTERS = 16, 32, 16, 8
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
         "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True}  # fmt: skip


class Numbers:
    """A decoder that needs no tokenizer."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))


def model(layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "num_hidden_layers": layers}, max_position_embeddings=2048)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def make_adapters(batch: RunningBatch) -> list[Adapter]:
    return [
        Adapter(f"adapter-{number}", {
            name: LowRank(torch.randn(RANK, shape[0]) * 0.01, torch.randn(RANK, shape[1]) * 0.01)
            for name, shape in batch.module_shapes.items()
        })
        for number in range(ADAPTERS)
    ]  # fmt: skip


def tokens_per_second(batch: RunningBatch, adapters: list[Adapter | None], steps: int) -> float:
    """Decode `steps` tokens for REQUESTS requests that take turns over the adapters."""
    chosen = [adapters[number % len(adapters)] for number in range(REQUESTS)]
    for adapter in chosen:
        if adapter:
            batch.residents.admit(adapter, set())
    prompts = torch.randint(0, SHAPE["vocab_size"], (REQUESTS, PROMPT)).tolist()
    params = SamplingParams(max_tokens=10**6, temperature=0)
    running = [
        Sequence(ids, params, adapter, Numbers(), lambda _: None) for ids, adapter in zip(prompts, chosen, strict=True)
    ]
    batch.join(running)
    best = min(timed_step(batch) for _ in range(steps))
    for sequence in running:
        sequence.cancel()
    batch.drop_finished()
    return REQUESTS / best


def timed_step(batch: RunningBatch) -> float:
    began = time.perf_counter()
    batch.step()
    return time.perf_counter() - began


@torch.inference_mode()
def main() -> None:
    given = arguments(__doc__ or "")
    layers, steps, rounds = (4, 4, 2) if given.short else (30, 20, 4)
    batch = RunningBatch(model(layers), max_loras=ADAPTERS, ends=frozenset())
    adapters = make_adapters(batch)
    cases = {"base only": [None], "one adapter": adapters[:1], "8 adapters": adapters}
    best: dict[str, float] = defaultdict(float)
    for _ in range(rounds):
        for name, used in cases.items():
            best[name] = max(best[name], tokens_per_second(batch, used, steps))
    base, one, eight = (best[name] for name in cases)
    rows = [
        Row("16 requests, one adapter, against base, tokens/s", one, base, one / base),
        Row("16 requests, 8 adapters, against base, tokens/s", eight, base, eight / base),
        Row("16 requests, 8 adapters against one, tokens/s", eight, one, eight / one, 1 / 1.5),
    ]
    publish("mixed_adapters", rows, given.out)


if __name__ == "__main__":
    main()
