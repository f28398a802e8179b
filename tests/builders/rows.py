"""Rows of datasets, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def rows(count: int = 40) -> list[dict[str, str]]:
    return [
        {"prompt": f"the bank {n} shall ", "completion": f"report each incident {n} within four hours"}
        for n in range(count)
    ]


def write_jsonl(path: Path, lines: list[Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
