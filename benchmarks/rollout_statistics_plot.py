"""The simulated rollouts as curves: runs with an alarm against the samples an arm, for ours and a fixed-sample test.

python benchmarks/rollout_statistics_plot.py docs/pictures/rollout-statistics.svg
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "rollout_statistics.json"
LEFT, TOP, WIDTH, HEIGHT, GAP = 60, 40, 330, 220, 130  # pixels; GAP has room for the names of the left panel
FEWEST, MOST = 100, 5000
COLORS = ("#2563a8", "#b3541e", "#2a7d4f", "#7a3ea1", "#555")
PANELS = (("False alarms, % of runs with equal arms", "A/A", 60.0, 5.0), ("Found, % of runs", "against", 100.0, 80.0))
WHAT = re.compile(r"(?P<case>.*), by (?P<samples>\d+) an arm, %")


def main() -> int:
    rows = json.loads(RESULT.read_text())["rows"]
    parts = [part for column, panel in enumerate(PANELS) for part in drawn(rows, LEFT + column * (WIDTH + GAP), *panel)]
    size = f"0 0 {LEFT + 2 * (WIDTH + GAP) + 20} {TOP + HEIGHT + 60}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="12">'
    note = text(LEFT, TOP + HEIGHT + 48, "whole lines: always valid, as rollouts use them; dashed: fixed-sample test")
    body = "".join(parts)
    Path(sys.argv[1]).write_text(f'{head}<rect width="100%" height="100%" fill="#fff"/>{body}{note}</svg>\n')
    return 0


def curves(rows: list[dict[str, Any]], word: str) -> dict[str, list[tuple[int, float, float]]]:
    """Case -> (samples an arm, ours, the fixed-sample test's), in percent."""
    points: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        if (match := WHAT.fullmatch(row["what"])) and word in match["case"]:
            points.setdefault(match["case"], []).append((int(match["samples"]), row["ours"], row["peer"]))
    return points


def drawn(rows: list[dict[str, Any]], left: int, title: str, word: str, top: float, limit: float) -> Iterator[str]:
    yield text(left, TOP - 16, title)
    for percent in (0.0, limit, top):
        yield line([(left, y_of(percent, top)), (left + WIDTH, y_of(percent, top))], "#bbb", dashed=percent == limit)
        yield text(left - 6, y_of(percent, top) + 4, f"{percent:g}", "end")
    for samples in (100, 500, 1500, 5000):
        yield text(x_of(samples, left), TOP + HEIGHT + 18, f"{samples:,}", "middle")
    for color, points in zip(COLORS, curves(rows, word).values(), strict=False):
        for side, dashed in ((1, False), (2, True)):
            yield line([(x_of(point[0], left), y_of(point[side], top)) for point in points], color, dashed=dashed)
    for place, case in enumerate(curves(rows, word)):
        yield text(left + WIDTH + 8, TOP + 14 + 18 * place, short(case), color=COLORS[place])


def short(case: str) -> str:
    return case.replace(" errors", "").replace("A/A, ", "")


def x_of(samples: int, left: int) -> float:
    return round(left + WIDTH * math.log(samples / FEWEST) / math.log(MOST / FEWEST), 1)


def y_of(percent: float, top: float) -> float:
    return round(TOP + HEIGHT * (1 - percent / top), 1)


def line(points: list[tuple[float, float]], color: str, *, dashed: bool) -> str:
    corners = " ".join(f"{x},{y}" for x, y in points)
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<polyline points="{corners}" fill="none" stroke="{color}" stroke-width="1.6"{dash}/>'


def text(x: float, y: float, words: str, anchor: str = "start", color: str = "#222") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{escape(words)}</text>'


if __name__ == "__main__":
    sys.exit(main())
