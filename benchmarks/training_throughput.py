"""Tokens a second and peak memory of our LoRA recipe against TRL's defaults: same model, rows and rank, in one run.

    python benchmarks/training_throughput.py --shape smollm2 --out benchmarks/results/training_throughput.json
    python -m torch.distributed.run --standalone --nproc-per-node 2 benchmarks/training_throughput.py --shape 8b

Random Llamas, so that nothing has to be downloaded. A side's speed is that of its steps after the first two, in tokens
that are no padding. The limit is 4 FLOPs a parameter and token (the frozen weights need no gradient) at the speed of a
large product of matrices on the same device.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from report import Row, publish
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer

from training.lm.base_model import on_gpu
from training.lm.token_sequences import TokenSequence
from training.recipes.lora import lora_config
from training.recipes.run_file import Hyperparameters, Run
from training.recipes.training_loop import trainer as loop
from training.recipes.training_loop.autocast_fix import WithoutCasts
from training.recipes.training_loop.batches import Material, joined
from training.recipes.training_loop.sampling_order import packed, reading_order

SHAPES = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
    },
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
KINDS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
RANK, WARM_STEPS = 16, 2
WORLD = int(os.environ.get("WORLD_SIZE", "1"))
FIRST = os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Measured:
    """Tokens a second without padding over all devices; peak memory of one device in GB, 0 on a CPU."""

    speed: float
    memory: float


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if on_gpu():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def model(shape: str) -> LlamaForCausalLM:
    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16 if on_gpu() else torch.float32)
        llama = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=8192))
        torch.set_default_dtype(before)
    return llama


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="<pad>")


def sequences(shape: str, count: int, longest: int) -> list[TokenSequence]:
    """Short rows with a long tail, as instructions are: half of them under 100 tokens."""
    chance, vocabulary = random.Random(0), int(SHAPES[shape]["vocab_size"])
    token_sequences = []
    for _ in range(count):
        ids = [chance.randrange(2, vocabulary) for _ in range(min(longest, int(chance.lognormvariate(4.5, 0.7)) + 4))]
        token_sequences.append(TokenSequence(ids, ids))
    return token_sequences


def settings(steps: int, batch: int, length: int, folder: str, ranks: dict[str, int]) -> Run:
    """A run of our recipe; on a CPU, where padding costs little after sorting by length, without packing."""
    return Run(
        base_model=Path(folder),
        base_model_name="random",
        train=Path(folder),
        eval=None,
        output=Path(folder),
        r=RANK,
        lora_alpha=2 * RANK,
        rank_pattern=ranks,
        alpha_pattern={name: 2 * rank for name, rank in ranks.items()},
        target_modules=KINDS,
        devices=WORLD,
        hyperparameters=Hyperparameters(
            steps=steps,
            batch_size=batch,
            max_length=length,
            packing=int(on_gpu()),
            checkpoint_steps=10**6,
            learning_rate=1e-4,
            scheduler="cosine",
            warmup_steps=4,
        ),
    )


def ours(run: Run, shape: str, rows: list[TokenSequence]) -> Measured:
    chosen, lengths = run.hyperparameters, [len(row.ids) for row in rows]
    if chosen.packing:
        groups = packed(lengths, run.sequences, chosen.max_length, 0)
    else:
        groups = [[place] for place in reading_order(lengths, run.sequences, chosen.batch_size * WORLD, 0)]
    data = Dataset.from_list([joined([rows[place] for place in group]) for group in groups])
    tokens = [sum(parts) for parts in data["seq_lengths"]]
    material = Material(data if chosen.packing else data.remove_columns("seq_lengths"), tokens, [])
    method = loop.Method("lora", keep=lambda trained, run: {})

    def make() -> Any:
        trainer = loop.make_trainer(run, method, model(shape), lora_config(run), tokenizer(), material)
        trainer.add_callback(WithoutCasts())
        return trainer

    return timed(make, tokens, chosen.batch_size)


def trl_defaults(steps: int, shape: str, rows: list[TokenSequence], folder: str) -> Measured:
    """SFTTrainer as its documentation starts it; only what the machine asks for is set."""
    picked = [rows[place % len(rows)] for place in range(steps * 8 * WORLD)]
    data = Dataset.from_dict({"input_ids": [row.ids for row in picked]})
    config = SFTConfig(
        output_dir=folder,
        max_steps=steps,
        report_to="none",
        save_strategy="no",
        use_cpu=not on_gpu(),
        bf16=on_gpu(),
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=on_gpu(),
    )
    lora = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules=KINDS)
    return timed(
        lambda: SFTTrainer(
            model(shape), args=config, train_dataset=data, processing_class=tokenizer(), peft_config=lora
        ),
        [len(row.ids) for row in picked],
        8,
    )


def timed(make: Callable[[], Any], tokens: list[int], batch: int) -> Measured:
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer, clock = make(), Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    counted = sum(tokens[WARM_STEPS * batch * WORLD : len(clock.ends) * batch * WORLD])
    memory = torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else 0.0
    trainer.model = trainer.model_wrapped = None
    return Measured(counted / (clock.ends[-1] - clock.ends[WARM_STEPS - 1]), memory)


def limit(shape: str) -> float:
    """Tokens a second of all devices at 4 FLOPs a parameter, were everything one large product of matrices."""
    size, dtype = (8192, torch.bfloat16) if on_gpu() else (1024, torch.float32)
    device = "cuda" if on_gpu() else "cpu"
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 1e9
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if on_gpu():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    fields = SHAPES[shape]
    head = int(fields["hidden_size"]) // int(fields["num_attention_heads"]) * int(fields["num_key_value_heads"])
    layer = 2 * int(fields["hidden_size"]) ** 2 + 2 * int(fields["hidden_size"]) * head
    layer += 3 * int(fields["hidden_size"]) * int(fields["intermediate_size"])
    parameters = layer * int(fields["num_hidden_layers"]) + int(fields["vocab_size"]) * int(fields["hidden_size"])
    return WORLD * 2 * size**3 / best / (4 * parameters)


def mixed_ranks(shape: str) -> dict[str, int]:
    """The same parameters as RANK everywhere: every second layer gets half of them, the others half as much again."""
    names = [f"^model\\.layers\\.{layer}\\." for layer in range(int(SHAPES[shape]["num_hidden_layers"]))]
    parts = [("mlp", kind) for kind in ("gate_proj", "up_proj", "down_proj")]
    parts += [("self_attn", kind) for kind in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return {
        rf"{name}{part}\.{kind}": RANK // 2 if layer % 2 else RANK * 3 // 2
        for layer, name in enumerate(names)
        for part, kind in parts
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--short", action="store_true", help="a run of seconds, to see that it works")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4, help="rows of a micro-batch on our side")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a packed row")
    parser.add_argument("--without-trl", action="store_true", help="our side alone")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    shape, steps = ("tiny", 6) if options.short else (options.shape, options.steps)
    length = 256 if options.short else options.length
    rows = sequences(shape, 512 if options.short else 8192, min(length, 1024))
    with tempfile.TemporaryDirectory() as folder:
        # A first pass, which is thrown away, loads and builds what both sides use.
        ours(settings(steps, options.batch, length, folder, {}), shape, rows)
        uniform = ours(settings(steps, options.batch, length, folder, {}), shape, rows)
        mixed = ours(settings(steps, options.batch, length, folder, mixed_ranks(shape)), shape, rows)
        peer = None if options.without_trl else trl_defaults(steps, shape, rows, folder)
    if FIRST:
        publish("training_throughput", table(f"{shape} x{WORLD}", uniform, mixed, peer, limit(shape)), options.out)


def table(name: str, uniform: Measured, mixed: Measured, peer: Measured | None, most: float) -> list[Row]:
    rows = [
        Row(f"{name}: against the 4N limit, tokens/s", uniform.speed, most, uniform.speed / most, 0.5),
        Row(
            f"{name}: mixed ranks against uniform, tokens/s",
            mixed.speed,
            uniform.speed,
            mixed.speed / uniform.speed,
            0.97,
        ),
    ]
    if peer:
        rows.insert(
            0,
            Row(
                f"{name}: against TRL's defaults, tokens/s", uniform.speed, peer.speed, uniform.speed / peer.speed, 3.0
            ),
        )
    if peer and peer.memory:
        rows.append(Row(f"{name}: peak memory, GB", uniform.memory, peer.memory, uniform.memory / peer.memory))
    return rows


if __name__ == "__main__":
    main()
