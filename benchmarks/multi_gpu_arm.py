"""One arm of multi_gpu.py: a model in a folder, loaded, sharded and trained by the recipe's own functions.

    python benchmarks/multi_gpu_arm.py --model DIR --method lora --sharding ddp --out arm.json

`--make` writes the random model of a shape to `--model` instead.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from training_throughput import KINDS, RANK, SHAPES, mixed_ranks, model, sequences, tokenizer
from transformers import PrinterCallback, TrainerCallback

from training.lm.base_model import load_model, on_gpu
from training.lm.error_reporting import last
from training.lm.token_sequences import TokenSequence
from training.recipes import full, qlora
from training.recipes.entrypoint import RunEvents
from training.recipes.lora import lora_config
from training.recipes.run_file import Hyperparameters, Run
from training.recipes.training_loop import distributed
from training.recipes.training_loop import trainer as loop
from training.recipes.training_loop.autocast_fix import WithoutCasts
from training.recipes.training_loop.batches import Material, joined
from training.recipes.training_loop.sampling_order import packed

WARM_STEPS = 3
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
# Rows of a micro-batch that leave room on 80 GB without recomputing activations.
BATCH = {"tiny": 2, "smollm2": 8, "1b": 4, "8b": 2}


class Watch(TrainerCallback):
    """When steps end, and how many bytes a device holds before the first and at most."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.weights = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if on_gpu():
            self.weights = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if on_gpu():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def write_random_model(shape: str, folder: Path) -> None:
    """A random model as a folder, as users have theirs."""
    model(shape).to(torch.bfloat16 if on_gpu() else torch.float32).save_pretrained(str(folder))
    tokenizer().save_pretrained(str(folder))


def method_of(name: str, *, exact: bool) -> loop.Method:
    if exact:
        return loop.Method(
            "lora",
            keep=nothing,
            load=in_float32,
            adapt=lambda base, run, _: (base, lora_config(run)),
            options={"bf16": False},
        )

    def adapter(base: Any, run: Run, _material: Any) -> tuple[Any, Any]:
        return base, lora_config(run)

    chosen = {
        "lora": loop.Method("lora", keep=nothing, adapt=adapter, callbacks=[WithoutCasts()]),
        "mixed": loop.Method("lora", keep=nothing, adapt=adapter, callbacks=[WithoutCasts()]),
        "qlora": loop.Method("qlora", keep=nothing, load=qlora.load_in_4_bits, adapt=adapter),
        "full": loop.Method("full", keep=nothing, adapt=full.in_full_precision),
    }
    return chosen[name]


def in_float32(run: Run) -> Any:
    """Sums in another order then differ by too little for Adam to make much of it."""
    return load_model(run.base_model, distributed.where_to_load(run)).float()


def nothing(_trained: loop.Trained, _run: Run) -> loop.Facts:
    return {}


def settings(options: argparse.Namespace, output: Path) -> Run:
    ranks = mixed_ranks(options.shape) if options.method == "mixed" else {}
    return Run(
        base_model=options.model,
        base_model_name="random",
        train=output,
        eval=None,
        output=output,
        r=RANK,
        lora_alpha=2 * RANK,
        rank_pattern=ranks,
        alpha_pattern={name: 2.0 * rank for name, rank in ranks.items()},
        target_modules=KINDS,
        devices=WORLD,
        sharding=options.sharding,
        hyperparameters=Hyperparameters(
            steps=options.steps,
            batch_size=options.rows or BATCH[options.shape],
            packing=1,
            max_length=256 if options.shape == "tiny" else 2048,
            checkpoint_steps=10**6,
            scheduler="cosine",
            warmup_steps=4,
        ),
    )


def material(run: Run, shape: str) -> Material:
    """Packed rows of sequences whose lengths are those of instructions, each filled to the last token: every arm then
    starts the same kernels at every step.
    """
    chosen = run.hyperparameters
    rows = sequences(shape, 256 if shape == "tiny" else 4096, chosen.max_length // 2)
    groups = packed([len(row.ids) for row in rows], run.sequences, chosen.max_length, 0)
    data = Dataset.from_list([joined(filled([rows[place] for place in group], chosen.max_length)) for group in groups])
    return Material(data, [sum(lengths) for lengths in data["seq_lengths"]], [])


def filled(group: list[TokenSequence], room: int) -> list[TokenSequence]:
    rest = [2] * (room - sum(len(row.ids) for row in group))
    return [*group, TokenSequence(rest, rest)] if rest else group


def measured(options: argparse.Namespace, output: Path) -> dict[str, Any]:
    run, method = settings(options, output), method_of(options.method, exact=options.float32)
    state = distributed.join(run, RunEvents(None))
    rows = material(run, options.shape)
    base, peft_config = method.adapt(method.load(run), run, rows)
    trainer = loop.make_trainer(run, method, base, peft_config, tokenizer(), rows)
    watch = Watch()
    trainer.remove_callback(PrinterCallback)
    for callback in (*method.callbacks, watch):
        trainer.add_callback(callback)
    trainer.train()
    each = run.hyperparameters.batch_size * WORLD
    counted = sum(rows.tokens[WARM_STEPS * each : len(watch.ends) * each])
    figures = {
        "speed": counted / (watch.ends[-1] - watch.ends[WARM_STEPS - 1]),
        "peak": torch.cuda.max_memory_allocated() if on_gpu() else 0,
        "weights": watch.weights,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
    }
    if state.is_main_process:
        options.out.write_text(json.dumps(figures))
    state.wait_for_everyone()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--make", action="store_true", help="write a random model to --model, and nothing else")
    parser.add_argument("--method", choices=["lora", "mixed", "qlora", "full"], default="lora")
    parser.add_argument("--sharding", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rows", type=int, help="of a device's micro-batch; without it as many as have room")
    parser.add_argument("--float32", action="store_true", help="the base and all products in float32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    disable_progress_bars()
    if options.make:
        write_random_model(options.shape, options.model)
        return
    measured(options, options.out.with_suffix(".work"))
    last(0)


if __name__ == "__main__":
    main()
