"""All six methods on one model with the same tokens: loss, speed, memory and what is forgotten; the article's claims.

    python benchmarks/methods.py --model DIR --data DIR --lines methods.jsonl --out benchmarks/results/methods.json

Each method runs its own recipe as the gpu worker runs it. First every rate of RATES with one seed, then the best rate
with five others. Every run is one line of the --lines file and is skipped when it is there. DIR of --data holds
DOMAIN.txt(.xz) (benchmarks/fetch_data.py makes it). --short takes the middle rate and one seed: no rate is tuned.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

from report import Row, publish
from tars import corpus

KINDS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ADAPTERS = (5e-4, 1e-3, 2e-3, 4e-3)
WHOLE = (5e-5, 1e-4, 2e-4)
RATES = {"full": WHOLE, "galore": (5e-4, 1e-3, 2e-3), "lora": ADAPTERS, "qlora": ADAPTERS, "dora": ADAPTERS,
         "adalora": (2e-3, 4e-3, 8e-3)}  # fmt: skip
# What the article's tables say of each method: quality as a share of full fine-tuning's, and times its speed.
CLAIMED = {"lora": (0.97, 3.0), "qlora": (0.95, 2.5), "dora": (0.98, 2.8), "adalora": (0.97, 2.0),
           "galore": (0.96, None)}  # fmt: skip
RANK, SCALE, SWEEP_SEED, SEEDS = 8, 2, 100, (1, 2, 3, 4, 5)
Line = dict[str, Any]


class Bench:
    """Rows of both texts in a scratch folder, and the lines of the runs done so far."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.steps, self.tokens = (given.steps, 8192) if not given.short else (10, 2048)
        self.train, self.eval = split(given.data, given.domain, folder / "domain")
        self.general = split(given.data, given.general, folder / "general")[1]
        self.lines: list[Line] = []
        if given.lines.exists():
            self.lines = [json.loads(line) for line in given.lines.read_text().splitlines()]
        self.general_before = self.loss(given.model, None)

    def done(self, method: str, rate: float, seed: int) -> Line:
        key = {"method": method, "rate": rate, "seed": seed, "steps": self.steps}
        for line in self.lines:
            if key.items() <= line.items():
                return line
        line = {**key, **self.trained(method, rate, seed)}
        self.lines.append(line)
        with self.given.lines.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        return line

    def trained(self, method: str, rate: float, seed: int) -> Line:
        folder = Path(tempfile.mkdtemp(prefix=f"{method}-", dir=self.folder))
        run = {
            "base_model": str(self.given.model), "train": str(self.train), "eval": str(self.eval),
            "output": str(folder / "output"), "events": str(folder / "events.jsonl"),
            "r": RANK, "lora_alpha": RANK * SCALE, "target_modules": KINDS,
            "hyperparameters": {"steps": self.steps, "batch_size": 4, "max_length": 128, "learning_rate": rate,
                                "seed": seed, "checkpoint_steps": 10**6, "eval_tokens": self.tokens},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(run))
        call(f"training.recipes.{method}", folder / "run.json")
        result = json.loads((folder / "output/result.json").read_bytes())
        logged = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
        steps = [event for event in logged if event["kind"] == "metrics"]
        whole = folder / "output/model"
        after = self.loss(whole, None) if whole.is_dir() else self.loss(self.given.model, folder / "output/adapter")
        return {
            "before": result["loss_before"], "after": result["loss_after"],
            "served": result.get("loss_served", result["loss_after"]), "general": after,
            "tokens": result["train_tokens"], "tokens_per_second": steps[-1]["tokens_per_second"],
            "memory": max(event["memory_bytes"] for event in steps),
            "deep_over_early": deep_over_early(folder / "output/adapter") if method == "adalora" else None,
        }  # fmt: skip

    def loss(self, model: Path, adapter: Path | None) -> float:
        """On the general text."""
        folder = Path(tempfile.mkdtemp(prefix="evaluation-", dir=self.folder))
        asked = {"base_model": str(model), "adapter": str(adapter) if adapter else None, "data": str(self.general),
                 "events": str(folder / "events.jsonl"), "output": str(folder), "max_tokens": self.tokens,
                 "max_length": 128}  # fmt: skip
        (folder / "evaluate.json").write_text(json.dumps(asked))
        call("training.recipes.evaluate", folder / "evaluate.json")
        return float(json.loads((folder / "result.json").read_bytes())["loss"])

    def finals(self, method: str) -> list[Line]:
        """The method's runs at its best rate; of the short form one run at the middle rate."""
        rates = RATES[method]
        if self.given.short:
            return [self.done(method, rates[len(rates) // 2], SEEDS[0])]
        best = min(rates, key=lambda rate: self.done(method, rate, SWEEP_SEED)["after"])
        return [self.done(method, best, seed) for seed in SEEDS]


def call(module: str, path: Path) -> None:
    subprocess.run([sys.executable, "-m", module, str(path)], check=True)  # noqa: S603 - our own programs


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
            if found := re.search(r"layers\.(\d+)\.(self_attn|mlp)\..*lora_A", name):
                ranks.setdefault((int(found[1]), found[2]), []).append(stored.get_slice(name).get_shape()[0])
    layers = max(layer for layer, _ in ranks) + 1
    deep = [fmean(found) for (layer, part), found in ranks.items() if part == "self_attn" and 3 * layer >= 2 * layers]
    early = [fmean(found) for (layer, part), found in ranks.items() if part == "mlp" and 3 * layer < layers]
    return fmean(deep) / fmean(early)


def mean(lines: list[Line], field: str) -> float:
    return fmean(line[field] for line in lines)


def table(found: dict[str, list[Line]], general_before: float) -> list[Row]:
    full, rows = found["full"], []
    base = mean(full, "before")
    gain = base - mean(full, "after")
    for method, lines in found.items():
        before, after = mean(lines, "before"), mean(lines, "after")
        rows.append(Row(f"{method}: held-out loss after, before", after, before, after / before))
        served = mean(lines, "served")
        rows.append(Row(f"{method}: as served, as trained", served, after, served / after))
        rows.append(Row(f"{method}: general text after, before", mean(lines, "general"), general_before,
                        mean(lines, "general") / general_before))  # fmt: skip
        quality, speed = CLAIMED.get(method, (None, None))
        if method != "full":
            # QLoRA's own losses are those of a 4-bit base; what serves it has 16 bits.
            reached = base - (served if method == "qlora" else after)
            rows.append(Row(f"{method}: gain against full's", reached, gain, reached / gain, quality))
        pace, memory = mean(lines, "tokens_per_second"), mean(lines, "memory") / 1e9
        rows.append(Row(f"{method}: tokens/s against full's", pace, mean(full, "tokens_per_second"),
                        pace / mean(full, "tokens_per_second"), speed))  # fmt: skip
        rows.append(Row(f"{method}: peak memory against full's, GB", memory, mean(full, "memory") / 1e9,
                        memory / (mean(full, "memory") / 1e9)))  # fmt: skip
    found_ranks = mean(found["adalora"], "deep_over_early")
    return [*rows, Row("AdaLoRA's ranks: deep attention over early FFN", found_ranks, 1.0, found_ranks, 4.0)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--domain", default="finance_reg")
    parser.add_argument("--general", default="kjv", help="text of another kind, to see what is forgotten")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lines", type=Path, default=Path("methods.jsonl"))
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--short", action="store_true", help="one untuned rate and one seed for ten steps")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(given, Path(folder))
        found = {method: bench.finals(method) for method in RATES}
        publish("methods", table(found, bench.general_before), given.out)


if __name__ == "__main__":
    main()
