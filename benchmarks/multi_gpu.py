"""One run on one GPU and on two: speed, memory, the same losses, a checkpoint that moves, and the same rank analysis.

    python benchmarks/multi_gpu.py --model DIR --data FILE --out benchmarks/results/multi_gpu.json

`--model` is a folder of SmolLM2-135M, `--data` a text of a domain. Speed is measured on random Llamas with the
recipe's own trainer, each arm in processes of its own; two GPUs read twice as many rows a step (weak scaling). Equality
is measured with the recipes as users start them, at the same global batch. On a machine without GPUs `--short` goes
through the same code with two processes on the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from report import Row, publish

from training.recipes import launch_command

HERE = Path(__file__).parent
KINDS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
DDP_GOAL, FSDP_GOAL, WEIGHTS_GOAL = 1.85, 1.7, 1 / 0.6
# Nats. A bfloat16 product of four rows rounds otherwise than two of two rows, and Adam makes much of little gradients.
LOSS_TOLERANCE = 0.02
EXACT_TOLERANCE = 0.0005  # Nats, in float32: the log has four digits.


WARM: set[str] = set()


def started(words: list[str], devices: int) -> None:
    """Run a program in as many processes; its own output is the benchmark's."""
    many = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    command = words if devices == 1 else ["-m", *many, *words]
    # The launcher gives each of several processes one thread: a single one must not have more.
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "4"}
    environment |= {"CUDA_VISIBLE_DEVICES": "0"} if devices == 1 else {}
    subprocess.run([sys.executable, *command], check=True, env=environment)  # noqa: S603


def speed(
    shape: str, method: str, devices: int, sharding: str, folder: Path, more: tuple[str, ...] = ()
) -> dict[str, Any]:
    """tokens/s of all devices, peak bytes of one device, bytes that the weights occupy on one, loss of each step."""
    arm, model, out = str(HERE / "multi_gpu_arm.py"), folder / shape, folder / f"{shape}-{method}-{devices}{sharding}"
    if not model.exists():
        started([arm, "--make", "--shape", shape, "--model", str(model)], 1)
    words = ["--shape", shape, "--model", str(model), "--method", method, "--sharding", sharding, "--out", str(out)]
    started([arm, *words, *more], devices)
    figures: dict[str, Any] = json.loads(out.read_text())
    sys.stdout.write(f"  {out.name}: {figures}\n")
    return figures


def speeds(shape: str, method: str, folder: Path, micro_batch: int | None = None) -> list[Row]:
    """The rows of a GPU's micro-batch are the shape's own unless they are named."""
    more = ("--rows", str(micro_batch)) if micro_batch else ()
    if shape not in WARM:
        speed(shape, method, 1, "ddp", folder, more)  # The first process reads the kernels from the disk: thrown away.
        WARM.add(shape)
    one = speed(shape, method, 1, "ddp", folder, more)
    named = f"{shape} {method}" + (f", {micro_batch} rows" if micro_batch else "")
    rows = []
    for sharding, goal in (("ddp", DDP_GOAL), ("fsdp", FSDP_GOAL)):
        two = speed(shape, method, 2, sharding, folder, more)
        label = f"{named}, two {sharding.upper()} against one: "
        ratio = two["speed"] / one["speed"]
        rows.append(Row(label + "tokens/s", two["speed"], one["speed"], ratio, goal))
        if one["peak"]:
            rows.append(Row(label + "peak GB", two["peak"] / 1e9, one["peak"] / 1e9, one["peak"] / two["peak"]))
    if one["weights"]:
        share = one["weights"] / two["weights"]
        label = f"{named}, FSDP: weights of a GPU, GB"
        rows.append(Row(label, two["weights"] / 1e9, one["weights"] / 1e9, share, WEIGHTS_GOAL))
    return rows


def run_file(folder: Path, options: argparse.Namespace, devices: int, sharding: str = "ddp") -> Path:
    """A LoRA run on the domain's text with four rows a step, however many devices read them."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {"steps": 20, "batch_size": 4 // devices, "max_length": 256, "checkpoint_steps": 10, "seed": 1}
    chosen |= {"learning_rate": 1e-4, "scheduler": "cosine", "warmup_steps": 4}
    record = {
        "base_model": str(options.model),
        "base_model_name": "base",
        "train": str(options.data),
        "eval": str(options.data),
        "output": str(folder / "output"),
        "events": str(folder / "events.jsonl"),
        "r": 16,
        "lora_alpha": 32,
        "target_modules": KINDS,
        "devices": devices,
        "sharding": sharding,
        "hyperparameters": chosen,
    }
    path = folder / "run.json"
    path.write_text(json.dumps(record))
    return path


def trained(folder: Path, options: argparse.Namespace, devices: int, sharding: str = "ddp") -> dict[int, float]:
    """Loss of each step of the recipe as a worker starts it."""
    words = launch_command.command("training.recipes.lora", str(run_file(folder, options, devices, sharding)), devices)
    subprocess.run([sys.executable, "-m", *words], check=True)  # noqa: S603
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return {event["step"]: event["loss"] for event in events if event["kind"] == "metrics"}


def moved(folder: Path, options: argparse.Namespace) -> dict[int, float]:
    """Ten steps on two devices, the other ten on one, from the checkpoint."""
    trained(folder, options, 2)
    for path in (folder / "output/checkpoints/checkpoint-20").glob("complete"):
        path.unlink()
    (folder / "events.jsonl").unlink()
    return trained(folder, options, 1)


def equality(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The largest difference of any step's loss, in nats."""
    one = trained(folder / "one", options, 1)
    rows = []
    for name, other in {
        "two DDP": trained(folder / "ddp", options, 2),
        "two FSDP": trained(folder / "fsdp", options, 2, "fsdp"),
        "resumed on one from two": moved(folder / "moved", options),
    }.items():
        worst = max(abs(other[step] - one[step]) for step in other)
        sys.stdout.write(f"  {name}: {len(other)} steps, largest difference of a loss {worst:.6f}\n")
        rows.append(
            Row(
                f"LoRA, {name}: largest difference of a loss",
                worst,
                LOSS_TOLERANCE,
                LOSS_TOLERANCE / max(worst, 1e-9),
                1.0,
            )
        )
    return rows


def exact(folder: Path, options: argparse.Namespace) -> list[Row]:
    """The same comparison in float32, on random weights: is it rounding that makes the difference?"""
    shape = "tiny" if options.short else "smollm2"
    one = speed(shape, "lora", 1, "ddp", folder, ("--float32", "--rows", "4"))["losses"]
    rows = []
    for sharding in ("ddp", "fsdp"):
        two = speed(shape, "lora", 2, sharding, folder, ("--float32", "--rows", "2"))["losses"]
        worst = max(abs(a - b) for a, b in zip(one, two, strict=True))
        rows.append(
            Row(
                f"LoRA in float32, two {sharding.upper()}: largest difference of a loss",
                worst,
                EXACT_TOLERANCE,
                EXACT_TOLERANCE / max(worst, 1e-9),
                1.0,
            )
        )
    return rows


def analysed(folder: Path, options: argparse.Namespace, preset: str, devices: int) -> dict[str, Any]:
    out = folder / f"{preset}-{devices}.json"
    words = ["training.tars", "--model", str(options.model), "--data", str(options.data), "--preset", preset]
    words += ["--reference", str(options.data), "--samples", "32", "--out", str(out)]
    words += ["--budget", "uniform:4" if options.short else "uniform:16"]
    if devices > 1:
        words = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(devices), "--module", *words]
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    plan: dict[str, Any] = json.loads(out.read_text())
    return plan


def analyses(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Scores and ranks of two devices against one, and the time."""
    rows = []
    for preset in ("default", "seed"):
        one, two = (analysed(folder, options, preset, devices) for devices in (1, 2))
        pairs = [(a["score"], b["score"]) for a, b in zip(one["modules"], two["modules"], strict=True)]
        worst = max(abs(a - b) / max(abs(a), 1e-12) for a, b in pairs)
        same = one["rank_pattern"] == two["rank_pattern"]
        sys.stdout.write(f"  {preset}: largest relative difference of a score {worst:.2e}, same ranks: {same}\n")
        rows.append(
            Row(
                f"analysis, {preset}: largest relative difference of a score, %",
                100 * worst,
                1.0,
                0.01 / max(worst, 1e-9),
                1.0,
            )
        )
        rows.append(
            Row(
                f"analysis, {preset}: seconds, one against two",
                one["seconds"],
                two["seconds"],
                one["seconds"] / two["seconds"],
            )
        )
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--short", action="store_true", help="the tiny shape only, to see that it works")
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M, or of any base model")
    parser.add_argument("--data", type=Path, required=True, help="a JSONL or text file of a domain")
    parser.add_argument("--parts", help="only these, as equality,analyses,lora:8b")
    parser.add_argument("--keep", type=Path, default=Path("multi_gpu.parts.json"), help="finished parts, not run again")
    return parser.parse_args()


def parts(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], list[Row]]]:
    """What is measured, by name."""
    shapes = {"lora": ["smollm2", "8b"], "mixed": ["8b"], "qlora": ["8b"], "full": ["1b"]}
    named: dict[str, Callable[[], list[Row]]] = {
        "equality": lambda: equality(folder, options),
        "exact": lambda: exact(folder, options),
        "analyses": lambda: analyses(folder, options),
    }
    for method, sizes in shapes.items():
        for shape in ["tiny"] if options.short else sizes:
            named[f"{method}:{shape}"] = partial(speeds, shape, method, folder)
    if not options.short:
        named["lora:8b:4"] = partial(speeds, "8b", "lora", folder, 4)
    return named


def main() -> None:
    options = arguments()
    stored_rows: dict[str, list[dict[str, Any]]] = json.loads(options.keep.read_text()) if options.keep.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        named = parts(options, Path(name))
        for part in options.parts.split(",") if options.parts else named:
            if part not in stored_rows:
                began = time.monotonic()
                stored_rows[part] = [asdict(row) for row in named[part]()]
                options.keep.write_text(json.dumps(stored_rows))
                sys.stdout.write(f"{part}: {time.monotonic() - began:.0f} s\n")
    publish("multi_gpu", [Row(**row) for part in named for row in stored_rows.get(part, [])], options.out)


if __name__ == "__main__":
    main()
