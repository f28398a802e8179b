"""TARS: plans the LoRA rank of every linear module before training. Names are imported on first use."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Analysis": "analysis",
    "AnalysisConfig": "config",
    "analyze": "analysis",
    "AllocationError": "allocation",
    "BudgetTooLarge": "allocation",
    "BudgetTooSmall": "allocation",
    "RankPattern": "allocation",
    "allocate_linear": "allocation",
    "patterns": "allocation",
    "reallocate": "allocation",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
