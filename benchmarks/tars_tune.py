"""Settle the default preset's two free numbers on the tuning domains: the value's power, and the ratio of rates.

    python benchmarks/tars_tune.py --model DIR --data DIR --out benchmarks/results/tars_tune.json

The pair with the least mean relative loss over both domains, each at its own best rate, is what tars_quality.py then
takes to domains that were not looked at. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import tars_quality
from tars import plans
from tars.plans import MLP, Recipe

from training.tars.allocation import reallocate

DOMAINS = ("finance_reg", "icd10")
POWERS = (0.5, 1.0, 2.0)
RATIOS = (1.0, 4.0, 16.0)
RATES = {1.0: (4e-3, 8e-3), 4.0: (2e-3, 4e-3), 16.0: (1e-3, 2e-3)}


def main() -> int:
    options = parse()
    if options.model is None or options.data is None:
        sys.stdout.write("tars_tune needs --model and --data: see the top of the file.\n")
        return 0 if options.short else 2
    for power in POWERS:
        for ratio in RATIOS:
            plans.ARMS[f"power {power:g} ratio {ratio:g}"] = lambda d, p=power, r=ratio: Recipe(
                powered(d, p), d.gradient, ratio=r
            )
    for ratio in RATIOS:
        plans.ARMS[f"mlp ratio {ratio:g}"] = lambda d, r=ratio: Recipe(d.uniform(1.0, MLP), d.gradient, ratio=r)
    options.advice.write_text(json.dumps({"power": 1.0, "ratio": 1.0}))
    bench = tars_quality.Bench(options)
    cells = [
        (domain, f"{kind} ratio {ratio:g}", rate, tars_quality.SWEEP_SEED)
        for kind in (*(f"power {power:g}" for power in POWERS), "mlp")
        for ratio in RATIOS
        for domain in DOMAINS
        for rate in RATES[ratio]
    ]
    bench.ensure(cells)
    decide(bench.lines, options.out)
    return 0


def powered(domain: plans.Domain, power: float) -> plans.Ranks:
    plan = domain.default.as_dict()
    plan["settings"]["power"] = power
    plan_of_power = reallocate(plan, "parameters", domain.budget)
    return {module["name"]: module["rank"] for module in plan_of_power["modules"] if module["rank"]}


def decide(lines: tars_quality.Lines, out: Path) -> None:
    """Mean over domains of each arm's best loss, relative to uniform MLP ranks at ratio 1: the least planned wins."""
    best: dict[tuple[str, str], float] = {}
    for row in lines.rows.values():
        key = row["domain"], row["arm"]
        best[key] = min(best.get(key, float("inf")), row["loss"])
    arms = sorted({arm for _, arm in best})
    means = {arm: sum(best[d, arm] / best[d, "mlp ratio 1"] for d in DOMAINS) / len(DOMAINS) - 1 for arm in arms}
    for arm in sorted(arms, key=lambda arm: means[arm]):
        sys.stdout.write(f"{arm:<24} {100 * means[arm]:+.2f} %\n")
    chosen = min((arm for arm in arms if arm.startswith("power")), key=lambda arm: means[arm]).split()
    record: dict[str, Any] = {"power": float(chosen[1]), "ratio": float(chosen[3])}
    record["relative_to_mlp_ratio_1"] = {arm: round(mean, 5) for arm, mean in means.items()}
    out.write_text(json.dumps(record, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=tars_quality.HERE / "results" / "tars_tune.json")
    parser.add_argument("--lines", type=Path, default=tars_quality.HERE / "results" / "tars_tune.jsonl")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--steps", type=int, default=tars_quality.Loop.steps)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    options.domains, options.advice = list(DOMAINS), options.out
    return options


if __name__ == "__main__":
    sys.exit(main())
