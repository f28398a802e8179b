"""SVG parts for curves of logged steps and bars of row lengths, so that pages show them without JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

WIDTH, HEIGHT, MARGIN = 640, 220, 44
MOST_POINTS = 600
# What a run logs, in the order of the page, and how people read it.
NAMES = {
    "loss": "Training loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
    "tokens_per_second": "Tokens a second",
    "memory_bytes": "Peak memory in GB",
}
Rows = Sequence[tuple[int, dict[str, Any]]]


def curves(rows: Rows) -> list[dict[str, Any]]:
    """Return a curve for each quantity that was logged at two steps or more; the loss comes first."""
    drawn_curves = [curve(rows, name) for name in NAMES]
    return [each for each in drawn_curves if each]


def curve(rows: Rows, name: str) -> dict[str, Any] | None:
    """Return one quantity's points for an SVG of WIDTH x HEIGHT; None with fewer than two."""
    scale = 1e-9 if name == "memory_bytes" else 1
    known = thinned([(step, values[name] * scale) for step, values in rows if values.get(name) is not None])
    if len(known) < 2:
        return None
    low, high = min(value for _, value in known), max(value for _, value in known)
    first, last = known[0][0], known[-1][0]

    def place(step: int, value: float) -> str:
        x = MARGIN + (step - first) / max(last - first, 1) * (WIDTH - 2 * MARGIN)
        y = MARGIN + (high - value) / max(high - low, 1e-12) * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    points = " ".join(place(step, value) for step, value in known)
    return {
        "name": name,
        "title": NAMES[name],
        "points": points,
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "first": first,
        "last": last,
        "now": f"{known[-1][1]:.4g}",
        "width": WIDTH,
        "height": HEIGHT,
    }


def thinned(known: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return every n-th point and the last, so that a long run draws as fast as a short one."""
    stride = -(-len(known) // MOST_POINTS)
    return known[:-1:stride] + known[-1:] if stride > 1 else known


def histogram(lengths: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return bars of row counts by length for an SVG of WIDTH x HEIGHT, and the position of `limit` tokens."""
    bins, step = lengths["bins"], lengths["step"]
    wide, most = (WIDTH - 2 * MARGIN) / len(bins), max(bins)
    bars = []
    for place, rows in enumerate(bins):
        height = rows / most * (HEIGHT - 2 * MARGIN)
        bars.append(
            {
                "x": round(MARGIN + place * wide, 1),
                "y": round(HEIGHT - MARGIN - height, 1),
                "rows": rows,
                "width": round(wide - 1, 1),
                "height": round(height, 1),
                "from": place * step,
                "to": (place + 1) * step - 1,
            }
        )
    reach = len(bins) * step
    line = round(MARGIN + limit / reach * (WIDTH - 2 * MARGIN), 1) if limit < reach else None
    return {"bars": bars, "most": most, "reach": reach, "limit": line, "width": WIDTH, "height": HEIGHT}
