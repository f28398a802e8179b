"""Heat map of a number for each module: layers from left to right, module kinds from top to bottom."""

from __future__ import annotations

from typing import Any

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CELL, LEFT, TOP = 18, 84, 20


def heat_map(ranks: dict[str, int], most: int = 0) -> dict[str, Any]:
    """Return cells (place, opacity, title), labels and size of a heat map; `most` is the darkest cell's value."""
    most = most or max(ranks.values(), default=1) or 1
    cells = []
    for name, rank in ranks.items():
        parts = name.split(".")
        layer, kind = int(parts[2]), parts[-1]
        place = {"x": LEFT + layer * CELL, "y": TOP + KINDS.index(kind) * CELL}
        shade = round(0.08 + 0.92 * rank / most, 2) if rank else 0.03
        cells.append({**place, "opacity": shade, "title": f"{name}: {f'rank {rank}' if rank else 'left out'}"})
    layers = 1 + max((int(name.split(".")[2]) for name in ranks), default=0)
    rows = [{"x": LEFT - 6, "y": TOP + 13 + number * CELL, "kind": kind} for number, kind in enumerate(KINDS)]
    columns = [{"x": LEFT + layer * CELL + 3, "layer": layer} for layer in range(0, layers, 5)]
    return {
        "cells": cells,
        "rows": rows,
        "columns": columns,
        "most": most,
        "width": LEFT + layers * CELL + 4,
        "height": TOP + len(KINDS) * CELL + 4,
    }
