"""How near does a race come to a full sweep? Its plan's held-out loss against 36 arms, and against what people do.

    python benchmarks/fetch_data.py DATA
    python benchmarks/tars_budget.py --model DIR --data DATA --minutes 9

For each domain and length of run: a sweep of kinds x ranks x rates with one seed; the product's race, with at most 15 %
of the run's tokens; its plan trained in full; and the usual recipe, rank 16 on all linear modules with alpha 32, at
2e-4, at a rate tuned with the race's tokens, and at its best rate of the sweep. Regret is the loss of a plan over the
lowest of the sweep. Every run is one line of the --lines file and is skipped when it is there, so a run of the script
may be cut short and go on. Needs a GPU; neither trl nor datasets.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from report import Row, publish
from tars import corpus
from tars.arms import Arm, Loop
from tars.llama import Base, Stack
from tars.side_by_side import Run, together
from transformers import AutoModelForCausalLM, AutoTokenizer

from training.tars.allocation import Bounds
from training.tars.analysis import analyze, linear_modules, shape_of
from training.tars.config import AnalysisConfig
from training.tars.race import candidates
from training.tars.race.candidates import Recipe
from training.tars.race.result import Race

HERE = Path(__file__).parent
# Fixed before the first run, near and far ones in turn. The last two tuned earlier presets; no race was tuned on any.
DOMAINS = ("code", "french", "eu_law", "kjv", "icd10", "finance_reg")
LENGTHS = (150, 600)
SCALE, LENGTH, BATCH, AT_ONCE, WIDTH = 2.0, 256, 8, 16, 32
RANKS, BUDGET = (2, 8, 16), 8
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
SWEPT = [f"{kinds} {rank}" for kinds in ("all", "mlp", "attention") for rank in RANKS]
STARTED, STARTED_RATE = "mlp 8 + init", 4e-3
SEED, USUAL, USUAL_RATE = 100, "all 16", 2e-4
SHARE, ROWS = 0.15, 800
# Arms of the sweep, of 36, from which a domain is read into the table.
FEWEST_SWEPT = 24
CONFIG = AnalysisConfig(
    budget_value=BUDGET,
    preset="race",
    rank_max=WIDTH,
    quantum=1,
    samples=32,
    max_length=LENGTH + 1,
    batch_size=8,
    run_batch_size=BATCH,
    run_scheduler="cosine",
    race_share=SHARE,
)
Key = tuple[str, int, str, float, int]  # domain, steps, arm, rate, seed


class Lines:
    """What was run so far, one JSON object a line: trained arms, and races under the arm `race`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            row = json.loads(line)
            self.rows[self.key(row)] = row

    @staticmethod
    def key(row: dict[str, Any]) -> Key:
        return row["domain"], row["steps"], row["arm"], row["rate"], row["seed"]

    def add(self, row: dict[str, Any]) -> None:
        self.rows[self.key(row)] = row
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


class Bench:
    """The model, its stack for the sweep, and the domains' texts."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_float32_matmul_precision("high")
        self.lines, self.until = Lines(options.lines), time.monotonic() + 60 * options.minutes
        self.options, on_gpu = options, torch.cuda.is_available()
        self.device = "cuda" if on_gpu else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(str(options.model))
        dtype = torch.bfloat16 if on_gpu else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(str(options.model), dtype=dtype).eval()
        self.model: Any = model.to(self.device)
        self.stack = Stack(Base.of(self.model), SCALE, LENGTH, compiled=on_gpu)
        self.modules = linear_modules(self.model)
        self.shapes = {name: shape_of(module) for name, module in self.modules.items()}
        self.starts: dict[tuple[str, int], dict[str, torch.Tensor]] = {}

    def domain(self, name: str, steps: int) -> None:
        """Race, then train what has no line yet: the race's plan, the usual recipe, and the sweep."""
        text = corpus.load(self.options.data, name, self.tokenizer, LENGTH, self.device)
        rows: list[dict[str, Any]] = [{"text": self.tokenizer.decode(block[:-1])} for block in text.train[:ROWS]]
        race, tuned = self.race(name, steps, rows), self.tuned(name, steps, rows)
        arms: list[tuple[str, float]] = [("plan", race["learning_rate"]), ("tuned", tuned["advised"])]
        arms += [(USUAL, USUAL_RATE), *((arm, rate) for arm in SWEPT for rate in RATES)]
        arms += [(STARTED, rate) for rate in RATES]
        # Fresh seeds of the plan and of its rivals fill the last batch of arms.
        extra = [("plan", race["learning_rate"]), ("tuned", tuned["advised"])]
        wanted = [(*arm, SEED) for arm in arms] + [(*arm, seed) for seed in (1, 2) for arm in extra]
        missing = [each for each in wanted if (name, steps, *each) not in self.lines.rows]
        for start in range(0, len(missing), self.options.at_once):
            if time.monotonic() < self.until:
                self.train(name, steps, missing[start : start + self.options.at_once], race, text)

    def train(
        self, name: str, steps: int, arms: Sequence[tuple[str, float, int]], race: dict[str, Any], text: corpus.Corpus
    ) -> None:
        started = time.monotonic()
        runs = []
        for arm, rate, seed in arms:
            ranks, init = self.recipe(arm, race)
            start = self.start(name, steps) if init else {}
            key = {"domain": name, "steps": steps, "arm": arm, "rate": rate, "seed": seed}
            runs.append(Run(key, name, Arm(ranks, rate, seed, dict(start))))
        loop = Loop(steps=steps, warmup=6)
        done = together(self.stack, {name: text}, runs, loop, at_once=self.options.at_once, batch=BATCH)
        for each in done:
            spent = sum(sum(self.shapes[module]) * rank for module, rank in each.ranks.items())
            losses = [round(float(loss), 4) for loss in each.losses]
            row = {"parameters": spent, "loss": round(float(each.losses.mean()), 5), "losses": losses}
            self.lines.add(each.run.key | row)
        say(f"{name} {steps}: {len(runs)} runs in {time.monotonic() - started:.1f} s")

    def recipe(self, arm: str, race: dict[str, Any]) -> tuple[dict[str, int], bool]:
        """Return an arm's ranks by module, and True if it begins with start values."""
        if arm == "plan":
            return race["ranks"], race["start_values"]
        kinds, rank, *init = (USUAL if arm == "tuned" else arm).split()
        budget = int(rank) * sum(sum(shape) for shape in self.shapes.values())
        return candidates.uniform(self.shapes, budget, Bounds(0, WIDTH, 1), kinds), bool(init)

    def race(self, name: str, steps: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the product's race for a run of so many steps; it is held once."""
        key = (name, steps, "race", 0.0, SEED)
        if key in self.lines.rows:
            return self.lines.rows[key]
        started = time.monotonic()
        plan = analyze(self.model, self.tokenizer, rows, None, replaced(run_steps=steps))
        self.starts[name, steps] = plan.init
        ranks = {module["name"]: module["rank"] for module in plan.modules if module["rank"]}
        row = {"domain": name, "steps": steps, "arm": "race", "rate": 0.0, "seed": SEED, "ranks": ranks}
        row |= {"learning_rate": plan.learning_rate, "start_values": bool(plan.init), "race": plan.race}
        row |= {"verdict": plan.verdict, "verdict_text": plan.verdict_text}
        self.lines.add(row)
        say(f"{name} {steps}: race in {time.monotonic() - started:.1f} s. {plan.verdict_text}")
        return row

    def tuned(self, name: str, steps: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the rate of the usual recipe that a race of rates alone advises, with the same tokens."""
        key = (name, steps, "tuning", 0.0, SEED)
        if key not in self.lines.rows:
            config = replaced(run_steps=steps, budget_value=16, race_rates=RATES)
            recipes = (Recipe("all"),)
            race = Race.of(self.model, self.modules, self.shapes, self.tokenizer, rows, config, recipes)
            raced = race.hold({}, lambda _steps: None)
            row = {"domain": name, "steps": steps, "arm": "tuning", "rate": 0.0, "seed": SEED}
            self.lines.add(row | {"advised": raced.rate, "race": raced.as_dict})
        return self.lines.rows[key]

    def start(self, name: str, steps: int) -> dict[str, torch.Tensor]:
        """Return the start values for A that the race's sample gives, for every module."""
        if not self.starts.get((name, steps)) or len(self.starts[name, steps]) < len(self.shapes):
            text = corpus.load(self.options.data, name, self.tokenizer, LENGTH, self.device)
            rows = [{"text": self.tokenizer.decode(block[:-1])} for block in text.train[:ROWS]]
            config = replaced(preset="default", sensitivity="spectrum", kinds="all", rank_min=0)
            self.starts[name, steps] = analyze(self.model, self.tokenizer, rows, None, config).init
        return self.starts[name, steps]


def replaced(**changes: Any) -> AnalysisConfig:
    return AnalysisConfig(**{**CONFIG.__dict__, **changes})


def table(lines: Lines, domains: Sequence[str]) -> Iterator[Row]:
    """Every plan against the lowest loss of the sweep, and against the usual recipe at its three rates."""
    for steps in LENGTHS:
        for domain in domains:
            own = {key[2:]: row for key, row in lines.rows.items() if key[:2] == (domain, steps)}
            swept = {key[:2]: row["loss"] for key, row in own.items() if key[0] in SWEPT and key[1] in RATES}
            if len(swept) >= FEWEST_SWEPT:
                yield from compared(domain, steps, own, swept)


def compared(domain: str, steps: int, own: dict[Any, Any], swept: dict[tuple[str, float], float]) -> Iterator[Row]:
    best = min(swept, key=lambda key: swept[key])
    plan = next(row for key, row in own.items() if key[0] == "plan" and key[2] == SEED)
    tuned = next(row for key, row in own.items() if key[0] == "tuned" and key[2] == SEED)
    peers = {
        f"the sweep's lowest, {best[0]} at {best[1]:g}": swept[best],
        "the sweep's lowest at no more parameters": min(
            row["loss"]
            for key, row in own.items()
            if key[:2] in swept and row["parameters"] <= 1.001 * plan["parameters"]
        ),
        f"{USUAL} at {USUAL_RATE:g}": own[USUAL, USUAL_RATE, SEED]["loss"],
        f"{USUAL} at {tuned['rate']:g}, tuned with the race's tokens": tuned["loss"],
        f"{USUAL} at its best rate": min(loss for (arm, _), loss in swept.items() if arm == USUAL),
    }
    same = [loss for (arm, _), loss in swept.items() if own[arm, min(RATES), SEED]["parameters"] == plan["parameters"]]
    if same:
        peers["its own ranks at their best rate: what the advised rate costs"] = min(same)
    if (STARTED, STARTED_RATE, SEED) in own:
        peers[f"{STARTED} at {STARTED_RATE:g}, without a race"] = own[STARTED, STARTED_RATE, SEED]["loss"]
    share = plan["parameters"] / own[USUAL, USUAL_RATE, SEED]["parameters"]
    for name, loss in peers.items():
        ours = f"plan at {plan['rate']:g} ({share:.2f} of r = 16)"
        label = f"{domain}, {steps} steps, {len(swept)} arms: {ours} against {name}"
        yield Row(label, plan["loss"], loss, round(loss / plan["loss"], 4))


def say(*words: Any) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M")
    parser.add_argument("--data", type=Path, help="folder of DOMAIN.txt(.xz)")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tars_budget.json")
    parser.add_argument("--lines", type=Path, default=HERE / "results" / "tars_budget.jsonl")
    parser.add_argument("--cells", default=",".join(f"{name}:{LENGTHS[0]}" for name in DOMAINS), help="DOMAIN:STEPS")
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    parser.add_argument("--minutes", type=float, default=1e9, help="start no group of runs after these")
    parser.add_argument("--short", action="store_true", help="read the recorded runs, train nothing")
    return parser.parse_args()


def main() -> int:
    options = parse()
    if not options.short:
        if options.model is None or options.data is None:
            sys.stderr.write("--model and --data are needed: see the top of this file.\n")
            return 2
        bench = Bench(options)
        for cell in options.cells.split(","):
            name, steps = cell.split(":")
            if time.monotonic() < bench.until:
                bench.domain(name, int(steps))
    rows = list(table(Lines(options.lines), DOMAINS))
    publish("tars_budget", rows, None if options.short else options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
