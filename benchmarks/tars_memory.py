"""Does the memory of an analysis grow with its sample? Peaks over a sample and over eight times as much.

    python benchmarks/tars_memory.py --model DIR --live --out benchmarks/results/tars_memory.json

Each analysis runs in a process of its own. `ours` is the peak of the small sample and `peer` that of the large one, in
MiB beyond the weights; the goal lets the large one have a tenth more. `--live` counts the tensors that are alive;
without it the peak is the process', in which the allocator keeps blocks of what is gone.
"""

from __future__ import annotations

import sys

from report import Row, publish
from tars_cost import OURS, in_process, parse

GROWTH, GOAL = 8, 1 / 1.1
SEQUENCES = {"cpu": 4, "cuda": 4, "short": 2}


def main() -> int:
    options = parse()
    few = SEQUENCES[options.kind]
    rows = []
    for variant in OURS:
        small, large = (in_process(options, variant, "--sequences", str(count))["mib"] for count in (few, few * GROWTH))
        label = f"{options.kind}: {variant}, MiB of {few} and of {few * GROWTH} sequences"
        rows.append(Row(label, round(small, 1), round(large, 1), round(small / large, 3), round(GOAL, 3)))
    publish("tars_memory", rows, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
