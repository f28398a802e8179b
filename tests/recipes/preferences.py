"""Preference rows on the tiny model's words."""

from __future__ import annotations

import random
from typing import Any

from tests.tiny_model import WORDS

GOOD, BAD = "keep records of every risk", "harm clients or markets"


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs whose preferred answer is of one kind, and whose rejected one is of another."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        start, length = chance.randrange(5, 15), chance.randrange(4, 10)
        prompt = " ".join(WORDS[start : start + length])
        rows.append({"prompt": prompt, "chosen": f"{GOOD} {prompt}", "rejected": f"{BAD} {prompt}"})
    return rows
