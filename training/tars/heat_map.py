"""A plan as an SVG heat map: layers from left to right, kinds of module from top to bottom, dark for high ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

CELL, GAP, LEFT, TOP = 18, 2, 110, 28


def svg(modules: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return an SVG document of `modules` ({name, rank}).

    Columns are layers, rows kinds of module, and cells are dark for high ranks, with a tooltip of module and rank.
    `title` is the document's title.
    """
    layers = sorted({layer_of(module["name"]) for module in modules})
    kinds = list(dict.fromkeys(kind_of(module["name"]) for module in modules))
    most = max((module["rank"] for module in modules), default=0) or 1
    width, height = LEFT + CELL * len(layers) + GAP, TOP + CELL * len(kinds) + GAP
    rows = [text(LEFT - 6, TOP + CELL * row + 13, kind, "end") for row, kind in enumerate(kinds)]
    columns = [text(LEFT + CELL * column + 8, TOP - 6, str(layer), "middle") for column, layer in enumerate(layers)]
    cells = [cell(module, layers, kinds, most) for module in modules]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="9" role="img"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    )
    return "\n".join([head, *rows, *columns, *cells, "</svg>\n"])


def layer_of(name: str) -> int:
    """Return the first number in a module's dotted name, which is its layer; 0 if it has none."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), 0)


def kind_of(name: str) -> str:
    """Return the last part of a module's dotted name, such as q_proj."""
    return name.rsplit(".", 1)[-1]


def text(x: int, y: int, content: str, anchor: str) -> str:
    """Return an SVG text element at (x, y); `anchor` is its text-anchor, and the content is escaped."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(content)}</text>'


def cell(module: Mapping[str, Any], layers: list[int], kinds: list[str], most: int) -> str:
    """Return the SVG cell of a module, whose opacity grows with its rank relative to `most`; transparent for rank 0."""
    x = LEFT + CELL * layers.index(layer_of(module["name"]))
    y = TOP + CELL * kinds.index(kind_of(module["name"]))
    shade = round(0.06 + 0.94 * module["rank"] / most, 3) if module["rank"] else 0.0
    return (
        f'<rect x="{x}" y="{y}" width="{CELL - GAP}" height="{CELL - GAP}" rx="2" fill="#0b5fad" '
        f'fill-opacity="{shade}" stroke="#c8ccd2" stroke-width="0.5">'
        f"<title>{escape(module['name'])}: rank {module['rank']}</title></rect>"
    )
