"""Tokens a second against the number of adapters in a batch: vLLM's own kernels, tuned tiles, and row kernels.

python benchmarks/vllm_adapters_plot.py docs/pictures/vllm-adapters.svg
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from statistics import median

LOG = Path(__file__).parent / "results" / "vllm_adapters_log.json"
LEFT, TOP, WIDTH, HEIGHT, GAP = 60, 44, 300, 210, 150  # pixels; GAP has room for the names of the lines
SIDES = {
    "plugin": ("with row kernels", "#2a7d4f"),
    "tuned": ("tuned tiles", "#8a6d1d"),
    "stock": ("vLLM as installed", "#b3541e"),
}
# wave of the log, requests, adapters, top of the scale
PANELS = (("32", 32, (0, 1, 8, 32), 7000), ("128", 128, (0, 1, 32, 128), 21000))


def main() -> int:
    figures_of = {
        (each["wave"], each["side"], *each["cell"]): each["figures"]
        for each in json.loads(LOG.read_text())
        if isinstance(each["cell"], list)
    }
    parts = [
        part for place, panel in enumerate(PANELS) for part in drawn(figures_of, LEFT + place * (WIDTH + GAP), *panel)
    ]
    size = f"0 0 {LEFT + 2 * (WIDTH + GAP)} {TOP + HEIGHT + 60}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" font-family="sans-serif" font-size="12">'
    note = text(
        LEFT, TOP + HEIGHT + 46, "adapters in the batch (base: none); an 8B Llama in bfloat16, rank 16, one H200"
    )
    Path(sys.argv[1]).write_text(f'{head}<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}{note}</svg>\n')
    return 0


def drawn(
    figures_of: dict[tuple[object, ...], list[dict[str, float]]],
    left: int,
    wave: str,
    requests: int,
    adapters: tuple[int, ...],
    top: int,
) -> Iterator[str]:
    yield text(left, TOP - 18, f"Tokens/s, {requests} requests at once")
    step = WIDTH / (len(adapters) - 1)
    for share in (0, 1, 2, 3):
        y = TOP + HEIGHT * (1 - share / 3.5)
        yield line([(left, y), (left + WIDTH, y)], "#ccc")
        yield text(left - 6, y + 4, f"{top * share / 3.5:,.0f}", "end")
    for place, count in enumerate(adapters):
        yield text(left + place * step, TOP + HEIGHT + 18, f"{count}" if count else "base", "middle")
    for side, (name, color) in SIDES.items():
        points = [
            (left + place * step, TOP + HEIGHT * (1 - median(each["tokens_per_s"] for each in figures) / top))
            for place, count in enumerate(adapters)
            if (figures := figures_of.get((wave, side, requests, count)))
        ]
        if points:
            yield line(points, color)
            yield text(points[-1][0] + 6, points[-1][1] + 4, name, color=color)


def line(points: list[tuple[float, float]], color: str) -> str:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{corners}" fill="none" stroke="{color}" stroke-width="1.8"/>'


def text(x: float, y: float, words: str, anchor: str = "start", color: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">{escape(words)}</text>'


if __name__ == "__main__":
    sys.exit(main())
