"""The rank benchmark's differences from the rival as a picture: a row an arm, a column a domain, 95 % intervals.

python benchmarks/tars_quality_plot.py docs/pictures/tars-quality.svg
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from tars import compare

LINES = Path(__file__).parent / "results" / "tars_quality.jsonl"
DOMAINS = ("eu_law", "french", "kjv")
LEFT, COLUMN, ROW, TOP, SCALE = 190, 190, 22, 46, 22.0  # pixels; SCALE a percent
GOAL, WORST = -2.0, 5.5  # percent; what lies beyond is drawn at the edge


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    lines = [json.loads(line) for line in LINES.read_text().splitlines()]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(picture(lines))
    return 0


def picture(lines: list[dict[str, Any]]) -> str:
    """One SVG, readable on a light and on a dark page."""
    arms = list(dict.fromkeys(line["arm"] for line in lines))
    width, height = LEFT + COLUMN * len(DOMAINS) + 10, TOP + ROW * len(arms) + 24
    columns = "".join(
        part for column, domain in enumerate(DOMAINS) for part in domain_column(lines, arms, column, domain)
    )
    names = "".join(text(LEFT - 10, TOP + ROW * row + 15, arm, "end") for row, arm in enumerate(arms))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{names}{columns}</svg>\n'
    )


def domain_column(lines: list[dict[str, Any]], arms: list[str], column: int, domain: str) -> Iterator[str]:
    bottom, rival = TOP + ROW * len(arms), compare.rival(lines, domain)
    yield text(place(column, 0), 16, domain, "middle")
    yield text(place(column, 0), 32, f"% against {rival}", "middle", "#666")
    for percent, color in ((0.0, "#888"), (GOAL, "#2a7")):
        x = place(column, percent)
        yield f'<line x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{bottom}" stroke="{color}" stroke-dasharray="3 3"/>'
        yield text(x, bottom + 14, f"{percent:+.0f}" if percent else "0", "middle", "#666")
    for row, arm in enumerate(arms):
        ours, peer = (compare.losses(lines, domain, name, 100) for name in (arm, rival))
        if set(ours) & set(peer):
            yield interval(column, TOP + ROW * row + 11, compare.difference(ours, peer))


def interval(column: int, y: int, difference: compare.Interval) -> str:
    low, mean, high = (place(column, value) for value in (difference.low, difference.mean, difference.high))
    color = "#b33" if difference.low > 0 else "#2a7" if difference.high < 0 else "#333"
    return (
        f'<line x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>'
        f'<circle cx="{mean}" cy="{y}" r="4" fill="{color}"/>'
    )


def place(column: int, percent: float) -> float:
    return round(LEFT + COLUMN * column + (min(max(percent, GOAL - 0.5), WORST) - GOAL + 0.5) * SCALE, 1)


def text(x: float, y: float, words: str, anchor: str, color: str = "#222") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}">{escape(words)}</text>'


if __name__ == "__main__":
    sys.exit(main())
