"""Prompts, figures and replies that the engines' processes of `vllm_adapters.py` share."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

Times = list[tuple[float, int]]
"""When each delta of an answer came, and its tokens."""


def prompt_of(row: int, length: int, vocabulary: int) -> list[int]:
    return [(7919 * row + 104729 * place) % (vocabulary - 10) + 5 for place in range(length)]


def figures(times: Sequence[Times], began: float, seconds: float, cell: dict[str, Any]) -> dict[str, Any]:
    firsts = [each[0][0] - began for each in times]
    taken = {
        "seconds": seconds,
        "prompt_tokens_per_s": cell["rows"] * cell.get("prompt", 0) / seconds,
        "ttft_p50": median(firsts),
        "ttft_max": max(firsts),
    }
    # While all requests decode: from the last first token to the first last one.
    begin, end = max(each[0][0] for each in times), min(each[-1][0] for each in times)
    if end > begin:
        within = sum(count for each in times for when, count in each if begin < when <= end)
        gaps = [
            later[0] - earlier[0]
            for each in times
            for earlier, later in pairwise(each)
            if begin < earlier[0] and later[0] <= end
        ]
        cuts = quantiles(gaps, n=20)
        taken |= {"tokens_per_s": within / (end - begin), "itl_p50": cuts[9], "itl_p95": cuts[18]}
    return taken


def answer(result: dict[str, Any]) -> None:
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")
    sys.stdout.flush()
