"""Charts that the server draws: numbers in, coordinates of an SVG out, so that pages need no JavaScript. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor, log10
from typing import Any

Place = tuple[float, float]
MOST_POINTS = 600
DAY = 1440  # minutes
STEPS_OF_TIME = (1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080, 20160, 43200)  # in minutes
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
    """Return an SVG line through the (step, value) pairs, the ends of both axes, and `now`, the last value.

    `known` has two or more pairs, in the order of steps; of many, about MOST_POINTS are drawn.
    """
    drawn = thinned(known)
    low, high = min(value for _, value in drawn), max(value for _, value in drawn)
    first, last = drawn[0][0], drawn[-1][0]
    places = [
        (frame.x((step - first) / max(last - first, 1)), frame.y(1 - (high - value) / max(high - low, 1e-12)))
        for step, value in drawn
    ]
    return {
        "points": points(places),
        "low": in_digits(low),
        "high": in_digits(high),
        "first": first,
        "last": last,
        "now": in_digits(drawn[-1][1], 4),
        "width": frame.width,
        "height": frame.height,
    }


def overlay(
    frame: Frame, series: Sequence[Sequence[tuple[int, float]]], marked: tuple[int, float] | None = None
) -> dict[str, Any]:
    """Return SVG lines through several (step, value) series in one frame, with the ends of both axes.

    Each line has its place in `series` as `number` and its last value as `now`; a series below two points has no line,
    and at least one must have two. `mark` is the place of the `marked` point.
    """
    drawn = [(number, thinned(known)) for number, known in enumerate(series) if len(known) > 1]
    steps = [step for _, known in drawn for step, _ in known]
    values = [value for _, known in drawn for _, value in known]
    (first, last), (low, high) = (min(steps), max(steps)), (min(values), max(values))

    def place(step: int, value: float) -> Place:
        return frame.x((step - first) / max(last - first, 1)), frame.y((value - low) / max(high - low, 1e-12))

    at = place(*marked) if marked else None
    return {
        "mark": {"x": round(at[0], 1), "y": round(at[1], 1)} if at else None,
        "lines": [
            {"number": number, "points": points(place(*each) for each in known), "now": in_digits(known[-1][1], 4)}
            for number, known in drawn
        ],
        "low": in_digits(low),
        "high": in_digits(high),
        "first": first,
        "last": last,
        "width": frame.width,
        "height": frame.height,
    }


def in_digits(value: float, digits: int = 3) -> str:
    """Return the number with `digits` significant digits; from 1000 on, rounded to a whole number, such as 2,260."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def thinned(known: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return at most about MOST_POINTS of the points, evenly, with the last, so that a long run draws fast."""
    stride = -(-len(known) // MOST_POINTS)
    return [*known[:-1:stride], known[-1]] if stride > 1 else list(known)


def histogram(frame: Frame, bins: Sequence[int], step: int, limit: int) -> dict[str, Any]:
    """Return the bars of a histogram, one for each count in `bins`, and the x of the line at `limit`.

    A bar covers `step` units of the data. The x is None if `limit` is at or beyond the end of the last bar.
    """
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


def stacked(sizes: Mapping[str, float], names: Sequence[str], scale: float) -> list[dict[str, Any]]:
    """Return the pieces of a stacked bar in the order of `names`, each `scale` times its size wide.

    A name without a size has a piece of no width.
    """
    pieces, x = [], 0.0
    for number, name in enumerate(names):
        size = sizes.get(name, 0)
        pieces.append({"name": name, "size": size, "x": round(x, 1), "width": round(size * scale, 1), "number": number})
        x += size * scale
    return pieces


def heat_map(ranks: Mapping[str, int], most: int = 0) -> dict[str, Any]:
    """Return a heat map for a template, a cell for each module, layers from left to right: cells, labels and size.

    A cell is the darker the higher the module's rank; the darkest has rank `most`, by default the highest one.
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


@dataclass(frozen=True)
class Plot:
    """A chart with an axis of time and an axis of values, both with labels; places outside are drawn at the edge.

    `low` and `high` are the values at the lower and upper edge, `first` and `last` the times at the sides.
    """

    first: datetime
    last: datetime
    low: float
    high: float
    width: int = 440
    height: int = 190
    left: int = 66
    bottom: int = 26
    top: int = 10
    right: int = 14

    def x(self, at: datetime) -> float:
        """Return the x of a time."""
        share = (at - self.first).total_seconds() / max((self.last - self.first).total_seconds(), 1)
        return round(self.left + min(1.0, max(0.0, share)) * (self.width - self.left - self.right), 1)

    def y(self, value: float) -> float:
        """Return the y of a value."""
        share = (min(self.high, max(self.low, value)) - self.low) / max(self.high - self.low, 1e-12)
        return round(self.height - self.bottom - share * (self.height - self.bottom - self.top), 1)

    def axes(self, unit: str) -> dict[str, Any]:
        """Return the axes for a template: their lines, and the ticks with labels; times are in UTC."""
        times = [{"x": self.x(at), "label": text} for at, text in time_ticks(self.first, self.last)]
        values = [{"y": self.y(value), "label": f"{value:.6g}"} for value in ticks(self.low, self.high)]
        return {
            "times": times,
            "values": values,
            "unit": unit,
            "width": self.width,
            "height": self.height,
            "left": self.left,
            "right": self.width - self.right,
            "top": self.top,
            "bottom": self.height - self.bottom,
            "below": self.height - 8,
        }


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return up to `most` round values from low to high."""
    rough = max(high - low, 1e-12) / (most - 1)
    power = 10 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, floor(high / step + 1e-9) + 1)]


def time_ticks(first: datetime, last: datetime, most: int = 5) -> list[tuple[datetime, str]]:
    """Return up to `most` round times from first to last with their labels in UTC: the hour and minute, or the date."""
    minutes = (last - first).total_seconds() / 60
    step = next((step for step in STEPS_OF_TIME if minutes / step <= most - 1), STEPS_OF_TIME[-1])
    number = ceil(first.timestamp() / (step * 60))
    stamps = range(number * step * 60, int(last.timestamp()) + 1, step * 60)
    moments = [datetime.fromtimestamp(stamp, UTC) for stamp in stamps][:most]
    return [(at, f"{at:%d %b}" if step >= DAY or not (at.hour or at.minute) else f"{at:%H:%M}") for at in moments]
