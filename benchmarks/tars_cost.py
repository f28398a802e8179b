"""What an analysis costs against a plain LoRA pass over the same tokens, and against the algorithm as published.

    python benchmarks/tars_cost.py --model DIR --out benchmarks/results/tars_cost.json      # SmolLM2 on this CPU
    python benchmarks/tars_cost.py --device cuda                                            # random Llama, 8B shape

Each variant runs in a process of its own, so that its peak is its own. Memory is what comes on top of the weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report import Row, publish

SHAPES = {
    "cuda": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "short": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
}
# Sequences of the task and as many of the reference, tokens of each, and sequences at a time.
SIZES = {"cuda": (8, 512, 1), "cpu": (32, 128, 1), "short": (8, 32, 1)}
OURS = ("seed", "spectrum", "default")
VARIANTS = ("plain", *OURS, "published")
TIME_GOAL, MEMORY_GOAL, PUBLISHED_GOAL = 1 / 1.6, 1 / 1.1, 10.0


def main() -> int:
    options = parse()
    if options.variant:
        sys.stdout.write(json.dumps(measured(options)) + "\n")
        return 0
    figures_of = {variant: in_process(options, variant) for variant in VARIANTS}
    publish("tars_cost", rows(figures_of, options.kind), options.out)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M; without it a random Llama")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--variant", choices=VARIANTS)
    parser.add_argument("--sequences", type=int, help="of the sample, instead of the usual number")
    parser.add_argument("--live", action="store_true", help="count the tensors that are alive, not the process")
    parser.add_argument("--short", action="store_true", help="a tiny random Llama")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.kind = options.device if options.device == "cuda" else "cpu" if options.model else "short"
    return options


def in_process(options: argparse.Namespace, variant: str, *more: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--variant", variant, "--device", options.device, *more]
    command += ["--model", str(options.model)] if options.model else []
    command += ["--live"] if options.live else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    sys.stdout.write(f"{variant}: {figures['seconds']:.2f} s, {figures['mib']:.0f} MiB on top of the weights\n")
    return figures


def rows(figures_of: dict[str, dict[str, float]], kind: str) -> list[Row]:
    plain, published, table = figures_of["plain"], figures_of["published"], []
    for variant in OURS:
        ours = figures_of[variant]
        # The probe is several passes over the sample, and says so: it has no goal of its own.
        goal = None if variant == "default" else TIME_GOAL
        times = (f"{kind}: {variant}, seconds against a LoRA pass", ours["seconds"], plain["seconds"])
        memory = (f"{kind}: {variant}, MiB with weights against a LoRA pass", ours["peak"], plain["peak"])
        less = (f"{kind}: {variant}, MiB beyond the weights against as published", ours["mib"], published["mib"])
        for (label, own, peer), least in ((times, goal), (memory, MEMORY_GOAL), (less, PUBLISHED_GOAL)):
            table.append(Row(label, round(own, 3), round(peer, 3), round(peer / own, 3), least and round(least, 3)))
    return table


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the variant after a warm-up, its peak memory, and what of that is not weights. MiB"""
    import torch

    model = model_of(options).to(options.device).eval()
    torch.manual_seed(0)
    count, length, batch = SIZES[options.kind]
    data = [torch.randint(0, model.config.vocab_size, (options.sequences or count, length)) for _ in range(2)]
    work = WORK[options.variant]
    weights = memory(options.device)
    if options.device == "cuda":
        work(model, [part[:1] for part in data], batch)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    if options.live:
        return live(lambda: work(model, data, batch), model)
    started = time.perf_counter()
    work(model, data, batch)
    if options.device == "cuda":
        torch.cuda.synchronize()
    seconds, peak = time.perf_counter() - started, memory(options.device, peak=True)
    return {"seconds": seconds, "peak": peak, "mib": peak - weights}


def live(work: Callable[[], Any], model: Any) -> dict[str, float]:
    """Peak MiB of the tensors that are alive: what the process' allocator keeps of those that are gone is not counted.

    Every operation is watched, so the seconds say nothing.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    weights = {part.untyped_storage().data_ptr() for part in model.parameters()}
    known: set[int] = set()
    now = peak = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for tensor in tree_leaves(result):
                if hasattr(tensor, "untyped_storage"):
                    see(tensor.untyped_storage())
            return result

    def see(storage: Any) -> None:
        nonlocal now, peak
        if storage._cdata not in known and storage.data_ptr() not in weights:
            known.add(storage._cdata)
            now += storage.nbytes()
            peak = max(peak, now)
            weakref.finalize(storage, forget, storage._cdata, storage.nbytes())

    def forget(name: int, size: int) -> None:
        nonlocal now
        known.discard(name)
        now -= size

    started = time.perf_counter()
    with Watch():
        work()
    own = sum(part.numel() * part.element_size() for part in model.parameters())
    return {"seconds": time.perf_counter() - started, "peak": (peak + own) / 2**20, "mib": peak / 2**20}


def memory(device: str, *, peak: bool = False) -> float:
    """MiB: of the GPU's allocator, or resident."""
    import torch

    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def model_of(options: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    if options.model:
        return AutoModelForCausalLM.from_pretrained(str(options.model), dtype=torch.float32)
    torch.set_default_dtype(torch.bfloat16 if options.device == "cuda" else torch.float32)
    with torch.device(options.device):
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[options.kind]))
    torch.set_default_dtype(torch.float32)
    return model


class Numbers:
    """A tokenizer of rows that are already token ids."""

    pad_token_id, eos_token_id, chat_template = 0, None, None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def plain(model: Any, data: list[Any], batch: int) -> None:
    """Forward and backward of a LoRA of rank 16 on every linear module, without an optimiser."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    for ids in data[0].split(batch):
        part = ids.to(model.device)
        adapted(input_ids=part, labels=part, use_cache=False).loss.backward()
    adapted.unload()


def ours(preset: str, **settings: Any) -> Callable[[Any, list[Any], int], None]:
    def work(model: Any, data: list[Any], batch: int) -> None:
        from training.tars.analysis import analyze
        from training.tars.config import AnalysisConfig

        target, reference = ([{"text": " ".join(map(str, row.tolist()))} for row in part] for part in data)
        config = AnalysisConfig(
            budget_value=16,
            preset=preset,
            rank_max=32,
            samples=len(target),
            max_length=data[0].shape[1],
            batch_size=batch,
            **settings,
        )
        analyze(model, Numbers(), target, reference, config)

    return work


def published(model: Any, data: list[Any], batch: int) -> list[int]:
    """The algorithm of the article, changed only where it could not run.

    It keeps inputs and outputs of every linear layer of both data sets, forms every weight gradient, takes softmaxes
    of mean outputs, and rounds the solution of a linear programme. Keys are module names on both sides, both sets
    have one length, and hooks are removed; without that it stops.
    """
    import torch
    from scipy.optimize import linprog

    modules = {
        name: part for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"
    }
    divergence = kept_divergences(model, modules, data, batch)
    model.requires_grad_(True)
    for ids in data[0].split(batch):
        part = ids.to(model.device)
        model(input_ids=part, labels=part, use_cache=False).loss.backward()
    norms = {name: float(module.weight.grad.float().norm()) for name, module in modules.items()}
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    scores = [norms[name] * divergence[name] for name in modules]
    costs = [sum(module.weight.shape) for module in modules.values()]
    solved = linprog([-score for score in scores], A_ub=[costs], b_ub=[16 * sum(costs)], bounds=[(4, 64)] * len(costs))
    return [round(rank) for rank in solved.x]


def kept_divergences(model: Any, modules: dict[str, Any], data: list[Any], batch: int) -> dict[str, float]:
    import torch

    sides = [kept_activations(model, modules, ids, batch) for ids in data]
    means = [
        {
            name: torch.cat([output for _, output in pairs]).mean(0).float().log_softmax(-1)
            for name, pairs in side.items()
        }
        for side in sides
    ]
    target, base = means
    return {name: float((base[name].exp() * (base[name] - target[name])).sum(-1).mean()) for name in modules}


def kept_activations(model: Any, modules: dict[str, Any], ids: Any, batch: int) -> dict[str, list[Any]]:
    """Input and output of every module for every batch."""
    import torch

    activations: dict[str, list[Any]] = {name: [] for name in modules}

    def recorder(name: str) -> Any:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            activations[name].append((inputs[0].detach().clone(), output.detach().clone()))

        return hook

    hooks = [module.register_forward_hook(recorder(name)) for name, module in modules.items()]
    with torch.no_grad():
        for part in ids.split(batch):
            model(input_ids=part.to(model.device), use_cache=False)
    for handle in hooks:
        handle.remove()
    return activations


WORK: dict[str, Callable[[Any, list[Any], int], Any]] = {
    "plain": plain,
    "seed": ours("seed"),
    "spectrum": ours("default", sensitivity="spectrum", kinds="all"),
    "default": ours("default"),
    "published": published,
}

if __name__ == "__main__":
    sys.exit(main())
