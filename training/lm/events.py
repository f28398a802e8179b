"""Event file of a child process for its supervisor: one JSON object per line, flushed after each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class Events:
    """Writer that appends events to the file `path`; with None it writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.started = time.monotonic()

    def write(self, kind: str, **fields: Any) -> None:
        """Append an event of this kind with its fields as a line of JSON.

        Raises ValueError for NaN and infinity, and OSError.
        """
        if self.path is None:
            return
        with self.path.open("a") as stream:
            stream.write(json.dumps({"kind": kind, **fields}, allow_nan=False) + "\n")

    def progress(self, step: int, total: int, first: int = 0) -> None:
        """Write an event that `step` of `total` is done, with the estimated seconds left.

        The estimate follows from the pace since step `first`, the first of this process.
        """
        done = step - first
        seconds_a_step = (time.monotonic() - self.started) / done if done > 0 else 0.0
        self.write("progress", step=step, total=total, eta_s=round(seconds_a_step * (total - step), 1))
