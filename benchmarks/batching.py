"""What a decode step of 16 requests costs when they use 8 adapters instead of one.

    python benchmarks/batching.py --out benchmarks/results/batching.json
    python benchmarks/batching.py --model FOLDER

The embedded engine in the shape of SmolLM2-135M, or with the model in a folder; adapters of rank 16 on all linear
modules. Both sides take turns of a few steps, and their medians are compared, so that a busy machine slows both.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from benchmarks.mixed_adapters import Bench, RunningBatch, shared_adapters, step_seconds  # noqa: E402
from benchmarks.report import Row, arguments, publish  # noqa: E402

REQUESTS, ADAPTERS = 16, 8
# The first step of a turn reads the prompts and is left out.
TURNS, STEPS = 30, 6
MOST = 1.5


@torch.inference_mode()
def main() -> None:
    options = arguments(__doc__ or "", "model", "layers")
    layers = int(options.layers) if options.layers else 2 if options.short else None
    bench = Bench("smollm2", "cpu", layers)
    model = (
        LlamaForCausalLM.from_pretrained(options.model, dtype=bench.dtype).eval() if options.model else bench.model()
    )
    batch = RunningBatch(model, max_loras=ADAPTERS, ends=frozenset())
    adapters = shared_adapters(batch, ADAPTERS, bench.dtype)
    seconds_of: dict[int, list[float]] = {1: [], ADAPTERS: []}
    for _ in range(3 if options.short else TURNS):
        for count, seconds in seconds_of.items():
            seconds += step_seconds(bench, batch, [*adapters[:count]], REQUESTS, STEPS)[1:]
    one, eight = (1000 * statistics.median(seconds_of[count]) for count in (1, ADAPTERS))
    sys.stdout.write(f"a step with {ADAPTERS} adapters takes {eight / one:.2f}x a step with one; at most {MOST}x\n")
    label = f"ms a decode step of {REQUESTS} requests, {ADAPTERS} adapters against one"
    publish("batching", [Row(label, eight, one, one / eight, 1 / MOST)], options.out)


if __name__ == "__main__":
    main()
