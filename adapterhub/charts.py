"""Charts that the server draws: numbers in, coordinates of an SVG out, so that pages need no JavaScript. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[float, float]
MOST_POINTS = 600
# Heat maps: kinds of module from top to bottom, and the sizes of a cell and of the room for labels.
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CELL, LEFT, TOP = 18, 84, 20


@dataclass(frozen=True)
class Frame:
    """The area of a chart, in the units of its SVG; the margin stays free on every side."""

    width: int
    height: int
    margin: int

    def x(self, share: float) -> float:
        """Return the x of a share, 0 (left) to 1 (right), of the way between the margins."""
        return round(self.margin + share * (self.width - 2 * self.margin), 1)

    def y(self, share: float) -> float:
        """Return the y of a share, 0 (bottom) to 1 (top), of the way between the margins."""
        return round(self.height - self.margin - share * (self.height - 2 * self.margin), 1)


def points(places: Iterable[Place]) -> str:
    """Return the (x, y) places as the points attribute of an SVG line or polygon."""
    return " ".join(f"{x},{y}" for x, y in places)


def curve(frame: Frame, known: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return an SVG line through two or more (step, value) pairs, the ends of both axes, and `now`, the last value."""
    drawn = thinned(known)
    low, high = min(value for _, value in drawn), max(value for _, value in drawn)
    first, last = drawn[0][0], drawn[-1][0]
    places = [
        (frame.x((step - first) / max(last - first, 1)), frame.y(1 - (high - value) / max(high - low, 1e-12)))
        for step, value in drawn
    ]
    return {
        "points": points(places),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "first": first,
        "last": last,
        "now": f"{drawn[-1][1]:.4g}",
        "width": frame.width,
        "height": frame.height,
    }


def thinned(known: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most about MOST_POINTS of the points, evenly, with the last, so that a long run draws fast."""
    stride = -(-len(known) // MOST_POINTS)
    return [*known[:-1:stride], known[-1]] if stride > 1 else list(known)


def histogram(frame: Frame, bins: Sequence[int], step: int, limit: int) -> dict[str, Any]:
    """Return bars of counts, each `step` wide, and the x of `limit`; None if that is beyond the bars."""
    most, reach = max(bins), len(bins) * step
    wide = (frame.width - 2 * frame.margin) / len(bins)
    bars = [
        {
            "x": frame.x(place / len(bins)),
            "y": frame.y(rows / most),
            "rows": rows,
            "width": round(wide - 1, 1),
            "height": round(rows / most * (frame.height - 2 * frame.margin), 1),
            "from": place * step,
            "to": (place + 1) * step - 1,
        }
        for place, rows in enumerate(bins)
    ]
    line = frame.x(limit / reach) if limit < reach else None
    return {"bars": bars, "most": most, "reach": reach, "limit": line, "width": frame.width, "height": frame.height}


def height_around_zero(frame: Frame, value: float, reach: float) -> float:
    """Return the y of a value in a chart from -reach to reach; a value outside is drawn at the edge."""
    return frame.y(0.5 + max(-reach, min(reach, value)) / reach / 2)


def stairs(frame: Frame, corners: Sequence[Place]) -> str:
    """Return the points of a stepped line: each (share of the width, share of the height) holds until the next.

    Empty without corners.
    """
    places: list[Place] = []
    for x, y in corners:
        places += [(frame.x(x), places[-1][1])] if places else []
        places.append((frame.x(x), frame.y(y)))
    return points([*places, (frame.width - frame.margin, places[-1][1])]) if places else ""


def stacked(sizes: Mapping[str, float], names: Sequence[str], scale: float) -> list[dict[str, Any]]:
    """Return the pieces of a bar, one after another by `names`; a name without a size has a piece of no width."""
    pieces, x = [], 0.0
    for number, name in enumerate(names):
        size = sizes.get(name, 0)
        pieces.append({"name": name, "size": size, "x": round(x, 1), "width": round(size * scale, 1), "number": number})
        x += size * scale
    return pieces


def heat_map(ranks: Mapping[str, int], most: int = 0) -> dict[str, Any]:
    """Return the heat map of a rank for each module, layers from left to right: cells, labels and size.

    `most` is the rank of the darkest cell; by default the highest one.
    """
    most = most or max(ranks.values(), default=1) or 1
    cells = []
    for name, rank in ranks.items():
        layer, kind = layer_and_kind(name)
        place = {"x": LEFT + layer * CELL, "y": TOP + KINDS.index(kind) * CELL}
        shade = round(0.08 + 0.92 * rank / most, 2) if rank else 0.03
        cells.append({**place, "opacity": shade, "title": f"{name}: {f'rank {rank}' if rank else 'left out'}"})
    layers = 1 + max((layer_and_kind(name)[0] for name in ranks), default=0)
    return {
        "cells": cells,
        "rows": [{"x": LEFT - 6, "y": TOP + 13 + row * CELL, "kind": kind} for row, kind in enumerate(KINDS)],
        "columns": [{"x": LEFT + layer * CELL + 3, "layer": layer} for layer in range(0, layers, 5)],
        "most": most,
        "width": LEFT + layers * CELL + 4,
        "height": TOP + len(KINDS) * CELL + 4,
    }


def layer_and_kind(name: str) -> tuple[int, str]:
    """Return the layer and kind of a module: (3, "q_proj") for `model.layers.3.self_attn.q_proj`."""
    parts = name.split(".")
    return int(parts[2]), parts[-1]
