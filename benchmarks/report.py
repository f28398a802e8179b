"""What every benchmark prints and writes: one row a comparison, both sides, their ratio and the goal."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """`ours` and `peer` in the unit that `what` names; `goal` is the least ratio, None where there is none."""

    what: str
    ours: float
    peer: float
    ratio: float
    goal: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.ratio >= self.goal


def arguments(description: str, *more: str) -> argparse.Namespace:
    """`--out FILE` and `--short`, which every benchmark takes, and the options that only this one takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--short", action="store_true", help="a run of seconds, to see that it works")
    for name in more:
        parser.add_argument(f"--{name}")
    return parser.parse_args()


def publish(name: str, rows: list[Row], out: Path | None) -> None:
    """Print the table; write it when asked."""
    for row in rows:
        goal = "" if row.goal is None else f"  goal {row.goal:g}: {'met' if row.met else 'missed'}"
        sys.stdout.write(f"{row.what:<48} {row.ours:>9.1f} {row.peer:>9.1f} {row.ratio:>6.2f}x{goal}\n")
    if out:
        records = [{**asdict(row), "met": row.met} for row in rows]
        facts = {"name": name, "date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": machine()}
        out.write_text(json.dumps({**facts, "rows": records}, indent=1) + "\n")


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip() or "unknown"


def machine() -> str:
    return f"{os.cpu_count()} cores, {processor()}, Python {platform.python_version()}"


def processor() -> str:
    """The processor's name as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
