"""All six methods on one model with the same tokens: loss, speed, memory and what is forgotten; the article's claims.

    python benchmarks/methods.py --model DIR --data DIR --lines methods.jsonl --out benchmarks/results/methods.json

Each method runs its own recipe as the gpu worker runs it. First every rate of RATES with one seed, then the best rate
with five others, --at-once of them side by side, and last one run of each method alone, for its speed. Every run is one
line of the --lines file and is skipped when it is there. DIR of --data holds
DOMAIN.txt(.xz) (benchmarks/fetch_data.py makes it). --short takes the middle rate and one seed: no rate is tuned.
--speeds runs each method alone at its middle rate and tells speed and memory only; weights may be random for that.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from report import Row, publish
from tars import corpus

KINDS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ADAPTERS = (1e-3, 2e-3, 4e-3)
WHOLE = (5e-5, 1e-4, 2e-4)
RATES = {
    "full": WHOLE,
    "galore": (5e-4, 1e-3, 2e-3),
    "lora": ADAPTERS,
    "qlora": ADAPTERS,
    "dora": ADAPTERS,
    "adalora": (2e-3, 4e-3, 8e-3),
}
# What the article's tables say of each method: quality as a share of full fine-tuning's, and times its speed.
CLAIMED = {
    "lora": (0.97, 3.0),
    "qlora": (0.95, 2.5),
    "dora": (0.98, 2.8),
    "adalora": (0.97, 2.0),
    "galore": (0.96, None),
}
RANK, SCALE, SWEEP_SEED, SEEDS, ALONE = 8, 2, 100, (1, 2, 3, 4, 5), 0
Line = dict[str, Any]
Key = tuple[str, float, int]  # method, rate, seed


class Bench:
    """Rows of both texts in a scratch folder, and the lines of the runs done so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.steps, self.tokens = (options.steps, 8192) if not options.short else (10, 2048)
        self.train, self.eval = split(options.data, options.domain, folder / "domain")
        self.general = split(options.data, options.general, folder / "general")[1]
        self.lines: list[Line] = []
        if options.lines.exists():
            self.lines = [json.loads(line) for line in options.lines.read_text().splitlines()]
        self.writing, self.devices = threading.Lock(), threading.local()
        self.general_before = self.loss(options.model, None)

    def line(self, key: Key, steps: int | None = None) -> Line | None:
        wanted = dict(zip(("method", "rate", "seed"), key, strict=True)) | {"steps": steps or self.steps}
        return next((line for line in self.lines if wanted.items() <= line.items()), None)

    def done(self, key: Key, steps: int | None = None) -> Line:
        if stored := self.line(key, steps):
            return stored
        method, rate, seed = key
        line = {"method": method, "rate": rate, "seed": seed, "steps": steps or self.steps}
        line |= self.trained(method, rate, seed, steps or self.steps)
        with self.writing, self.options.lines.open("a") as stream:
            self.lines.append(line)
            stream.write(json.dumps(line) + "\n")
        return line

    def all_done(self, keys: Iterable[Key], at_once: int, steps: int | None = None) -> None:
        """Side by side, the GPUs in turn."""
        turns = iter(range(10**6))

        def take_a_device() -> None:
            self.devices.mine = next(turns) % max(1, torch.cuda.device_count())

        with ThreadPoolExecutor(at_once, initializer=take_a_device) as pool:
            list(pool.map(partial(self.done, steps=steps), keys))

    def trained(self, method: str, rate: float, seed: int, count: int) -> Line:
        folder = Path(tempfile.mkdtemp(prefix=f"{method}-", dir=self.folder))
        run = {
            "base_model": str(self.options.model),
            "train": str(self.train),
            "eval": str(self.eval),
            "output": str(folder / "output"),
            "events": str(folder / "events.jsonl"),
            "r": RANK,
            "lora_alpha": RANK * SCALE,
            "target_modules": KINDS,
            "hyperparameters": {
                "steps": count,
                "batch_size": 4,
                "max_length": 128,
                "learning_rate": rate,
                "scheduler": "cosine",
                "warmup_steps": 4,
                "seed": seed,
                "checkpoint_steps": 10**6,
                "eval_tokens": self.tokens,
            },
        }
        (folder / "run.json").write_text(json.dumps(run))
        self.call(f"training.recipes.{method}", folder / "run.json")
        result = json.loads((folder / "output/result.json").read_bytes())
        logged = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        steps = [event for event in logged if event["kind"] == "metrics"]
        whole = folder / "output/model"
        after = self.loss(whole, None) if whole.is_dir() else self.loss(self.options.model, folder / "output/adapter")
        return {
            "before": result["loss_before"],
            "after": result["loss_after"],
            "served": result.get("loss_served", result["loss_after"]),
            "general": after,
            "tokens": result["train_tokens"],
            "tokens_per_second": steps[-1]["tokens_per_second"],
            "memory": max(event["memory_bytes"] for event in steps),
            "deep_over_early": deep_over_early(folder / "output/adapter") if method == "adalora" else None,
        }

    def loss(self, model: Path, adapter: Path | None) -> float:
        """On the general text."""
        folder = Path(tempfile.mkdtemp(prefix="evaluation-", dir=self.folder))
        task = {
            "base_model": str(model),
            "adapter": str(adapter) if adapter else None,
            "data": str(self.general),
            "events": str(folder / "events.jsonl"),
            "output": str(folder),
            "max_tokens": self.tokens,
            "max_length": 128,
        }
        (folder / "evaluate.json").write_text(json.dumps(task))
        self.call("training.recipes.evaluate", folder / "evaluate.json")
        return float(json.loads((folder / "result.json").read_bytes())["loss"])

    def best(self, method: str) -> float:
        """The rate with the lowest loss in the sweep; of the short form the middle one."""
        if self.options.short or self.options.speeds:
            return RATES[method][len(RATES[method]) // 2]
        return min(RATES[method], key=lambda rate: self.done((method, rate, SWEEP_SEED))["after"])

    def finals(self) -> dict[str, list[Line]]:
        """Each method's runs at its best rate."""
        if not self.options.short:
            sweep = [(method, rate, SWEEP_SEED) for method, rates in RATES.items() for rate in rates]
            self.all_done(sweep, self.options.at_once)
        best, seeds = {method: self.best(method) for method in RATES}, SEEDS[:1] if self.options.short else SEEDS
        self.all_done([(method, best[method], seed) for seed in seeds for method in RATES], self.options.at_once)
        return {method: [self.done((method, best[method], seed)) for seed in seeds] for method in RATES}

    def alone(self) -> dict[str, Line]:
        """A run of each method with a device to itself."""
        steps = self.steps if self.options.short else self.options.alone_steps
        keys = {method: (method, self.best(method), ALONE) for method in RATES}
        self.all_done(keys.values(), max(1, torch.cuda.device_count()), steps)
        return {method: self.done(key, steps) for method, key in keys.items()}

    def call(self, module: str, path: Path) -> None:
        device = {"CUDA_VISIBLE_DEVICES": str(getattr(self.devices, "mine", 0))} if torch.cuda.is_available() else {}
        device["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.options.at_once))
        subprocess.run([sys.executable, "-m", module, str(path)], check=True, env={**os.environ, **device})  # noqa: S603


def split(data: Path, domain: str, folder: Path) -> tuple[Path, Path]:
    """Passages of about 500 characters; a tenth of the documents is held out."""
    folder.mkdir()
    texts = corpus.documents(data, domain)
    held_out = max(1, len(texts) // 10)
    files = folder / "train.jsonl", folder / "eval.jsonl"
    for file, part in zip(files, (texts[held_out:], texts[:held_out]), strict=True):
        passages = [text[start : start + 500] for text in part for start in range(0, len(text), 500)]
        rows = [json.dumps({"text": passage}) for passage in passages[:4000] if len(passage) > 200]
        file.write_text("\n".join(rows) + "\n")
    return files


def deep_over_early(adapter: Path) -> float:
    """Mean rank that AdaLoRA left to attention in the last third of the layers, over early feed-forward layers'."""
    from safetensors import safe_open

    ranks: dict[tuple[int, str], list[int]] = {}
    with safe_open(adapter / "adapter_model.safetensors", "pt") as stored:
        for name in stored.keys():  # noqa: SIM118 - a file's method, not a mapping
            if match := re.search(r"layers\.(\d+)\.(self_attn|mlp)\..*lora_A", name):
                ranks.setdefault((int(match[1]), match[2]), []).append(stored.get_slice(name).get_shape()[0])
    layers = max(layer for layer, _ in ranks) + 1
    deep = [fmean(match) for (layer, part), match in ranks.items() if part == "self_attn" and 3 * layer >= 2 * layers]
    early = [fmean(match) for (layer, part), match in ranks.items() if part == "mlp" and 3 * layer < layers]
    return fmean(deep) / fmean(early)


def speeds(method: str, alone: dict[str, Line]) -> list[Row]:
    """Tokens a second and peak memory beside full fine-tuning's."""
    _, claimed = CLAIMED.get(method, (None, None))
    rows = []
    for field, unit, claim in (("tokens_per_second", 1.0, claimed), ("memory", 1e9, None)):
        ours, other = alone[method][field] / unit, alone["full"][field] / unit
        label = "tokens/s" if unit == 1.0 else "peak memory, GB,"
        rows.append(Row(f"{method}: {label} against full's", ours, other, ours / other, claim))
    return rows


def mean(lines: list[Line], field: str) -> float:
    return fmean(line[field] for line in lines)


def table(lines_of: dict[str, list[Line]], alone: dict[str, Line], general_before: float) -> list[Row]:
    full, rows = lines_of["full"], []
    base = mean(full, "before")
    gain = base - mean(full, "after")
    for method, lines in lines_of.items():
        before, after = mean(lines, "before"), mean(lines, "after")
        rows.append(Row(f"{method}: held-out loss after, before", after, before, after / before))
        served = mean(lines, "served")
        rows.append(Row(f"{method}: as served, as trained", served, after, served / after))
        rows.append(
            Row(
                f"{method}: general text after, before",
                mean(lines, "general"),
                general_before,
                mean(lines, "general") / general_before,
            )
        )
        quality, _ = CLAIMED.get(method, (None, None))
        if method != "full":
            # QLoRA's own losses are those of a 4-bit base; what serves it has 16 bits.
            reached = base - (served if method == "qlora" else after)
            rows.append(Row(f"{method}: gain against full's", reached, gain, reached / gain, quality))
        rows += speeds(method, alone)
    found_ranks = mean(lines_of["adalora"], "deep_over_early")
    return [*rows, Row("AdaLoRA's ranks: deep attention over early FFN", found_ranks, 1.0, found_ranks, 4.0)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--domain", default="finance_reg")
    parser.add_argument("--general", default="kjv", help="text of another kind, to see what is forgotten")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--alone-steps", type=int, default=100, help="of the run that measures the speed")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument("--lines", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--speeds", action="store_true", help="only one run of each method alone")
    parser.add_argument("--short", action="store_true", help="one untuned rate and one seed for ten steps")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        if options.speeds:
            alone = bench.alone()
            publish("methods", [row for method in RATES for row in speeds(method, alone)], options.out)
            return
        lines_of = bench.finals()
        publish("methods", table(lines_of, bench.alone(), bench.general_before), options.out)


if __name__ == "__main__":
    main()
