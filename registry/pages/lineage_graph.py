"""Lineage graph of an adapter's newest versions: origins on the left, aliases that serve them on the right. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from django.urls import reverse

from adapterhub.core.method_names import method_name
from registry.models import AdapterVersion

WIDE, HIGH, ACROSS, DOWN = 132, 26, 176, 38
Box = dict[str, Any]


def ancestry(versions: Iterable[AdapterVersion]) -> dict[str, Any]:
    """Return what an SVG of these versions' lineage draws, in columns from the data to the aliases.

    `boxes` are the nodes, `lines` join two boxes as (x1, y1, x2, y2), `heads` are the titles of the used columns and
    `top` is the room above the boxes; `width` and `height` are the picture's.
    """
    boxes: dict[str, Box] = {}
    lines, free = [], [0] * 5
    for row, version in enumerate(versions):
        for chain in chains(version):
            placed = [place(boxes, free, row, *node) for node in chain]
            lines += [line(one, other) for one, other in pairwise(placed)]
    used = sorted({box["column"] for box in boxes.values()})
    height = max((box["y"] for box in boxes.values()), default=0) + DOWN
    return {
        "boxes": boxes.values(),
        "lines": list(dict.fromkeys(lines)),
        "width": ACROSS * 5,
        "height": height,
        "heads": [{"x": ACROSS * column, "text": HEADS[column]} for column in used],
        "top": DOWN,
    }


HEADS = ("data", "rank analysis", "made by", "version", "live as")


def chains(version: AdapterVersion) -> list[list[tuple[int, str, str, str]]]:
    """Return chains of nodes (column, key, label, URL): the first leads from the origins to the version.

    One more leads from the version to each alias that serves it. The URL is "" for a dataset.
    """
    lineage, slug = version.lineage, version.adapter.ref
    known: list[tuple[int, str | None, Callable[[str], str], str | None]] = [
        (0, lineage.get("dataset"), lambda key: f"data {key[:8]}", None),
        (1, lineage.get("rank_analysis"), lambda key: f"ranks {key[:8]}", "rank-analysis"),
        (2, lineage.get("run"), lambda key: f"run {key[:8]}", "training-run"),
        (2, lineage.get("compression"), lambda key: f"compression {key[:6]}", "compression"),
    ]
    origins = [
        (column, f"{column}:{key}", label(key), reverse(name, args=[key]) if name else "")
        for column, key, label, name in known
        if key
    ]
    own = (
        3,
        f"3:{version.pk}",
        f"v{version.number} {method_name(version.method)}",
        reverse("version", args=[slug, version.number]),
    )
    live = [(4, f"4:{alias.pk}", alias.name, reverse("alias", args=[alias.ref])) for alias in version.aliases.all()]
    return [[*origins, own], *([own, each] for each in live)]


def place(boxes: dict[str, Box], free: list[int], row: int, column: int, key: str, label: str, url: str) -> Box:
    """Return the box of a node; a new one is put into its version's row if free, else below the column's last box.

    `boxes` and `free`, the first free row of each column, are updated.
    """
    if key not in boxes:
        at = max(row, free[column])
        free[column] = at + 1
        boxes[key] = {
            "column": column,
            "x": ACROSS * column,
            "y": DOWN * at,
            "label": label[:19],
            "title": label,
            "url": url,
        }
    return boxes[key]


def line(one: Box, other: Box) -> tuple[float, float, float, float]:
    """Return (x1, y1, x2, y2) from the middle of one box's right edge to the middle of the other's left edge."""
    return one["x"] + WIDE, one["y"] + HIGH / 2, other["x"], other["y"] + HIGH / 2
