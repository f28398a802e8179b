"""Draws each picture of docs/pictures that has a text beside it, such as architecture.svg.

python .ci/draw_architecture.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

PICTURES = Path(__file__).resolve().parents[1] / "docs/pictures"
WIDTH, HEIGHT = 236, 56
COLUMN, ROW = 372, 112
MARGIN = 24
BOX = re.compile(r"box (\w+) ([\d.]+) ([\d.]+) (.+?) \| (.+)")
ARROW = re.compile(r"(\w+) -> (\w+) : (.+)")


@dataclass(frozen=True)
class Box:
    """A part of the product, by the place of its centre."""

    x: float
    y: float
    title: str
    text: str

    def edge_towards(self, other: Box) -> tuple[float, float]:
        """Return the point where the line between the centres leaves this box."""
        dx, dy = other.x - self.x, other.y - self.y
        reach = min(WIDTH / 2 / abs(dx) if dx else 1, HEIGHT / 2 / abs(dy) if dy else 1)
        return self.x + dx * reach, self.y + dy * reach

    def svg(self) -> str:
        x, y = self.x - WIDTH / 2, self.y - HEIGHT / 2
        return (
            f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#eef4f8" stroke="#35607a"/>\n'
            f'<text x="{self.x:g}" y="{self.y - 5:g}" font-weight="bold">{escape(self.title)}</text>\n'
            f'<text x="{self.x:g}" y="{self.y + 14:g}" fill="#444">{escape(self.text)}</text>'
        )


def arrow(start: Box, end: Box, label: str) -> str:
    (x1, y1), (x2, y2) = start.edge_towards(end), end.edge_towards(start)
    # A white edge keeps the words readable where they cross a line.
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="#777" marker-end="url(#head)"/>\n'
        f'<text x="{(x1 + x2) / 2:g}" y="{(y1 + y2) / 2 + 4:g}" fill="#333" stroke="#fff" stroke-width="4" '
        f'paint-order="stroke" font-size="12">{escape(label)}</text>'
    )


def read(source: str) -> tuple[dict[str, Box], list[tuple[str, str, str]]]:
    """Return the boxes by name, and the arrows. Raises ValueError for a line that is neither."""
    boxes, arrows = {}, []
    for line in filter(None, (line.partition("#")[0].strip() for line in source.splitlines())):
        if box := BOX.fullmatch(line):
            name, column, row, title, text = box.groups()
            x, y = MARGIN + WIDTH / 2 + float(column) * COLUMN, MARGIN + HEIGHT / 2 + float(row) * ROW
            boxes[name] = Box(x, y, title, text)
        elif joined := ARROW.fullmatch(line):
            arrows.append((joined[1], joined[2], joined[3]))
        else:
            raise ValueError(f"{line!r} is neither a box nor an arrow.")
    return boxes, arrows


def drawn(source: str) -> str:
    """Return the picture of the text as SVG."""
    boxes, arrows = read(source)
    width = max(box.x for box in boxes.values()) + WIDTH / 2 + MARGIN
    height = max(box.y for box in boxes.values()) + HEIGHT / 2 + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif" '
        'font-size="13" text-anchor="middle">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#777"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        *(arrow(boxes[start], boxes[end], label) for start, end, label in arrows),
        *(box.svg() for box in boxes.values()),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for source in PICTURES.glob("*.txt"):
        source.with_suffix(".svg").write_text(drawn(source.read_text()))
