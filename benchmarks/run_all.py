"""The short form of every benchmark, one table: `make bench`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
NOT_BENCHMARKS = {"report.py", "run_all.py", "fetch_data.py", "registry_sides.py", "router_sides.py"}


def main() -> int:
    failed = 0
    for script in sorted(path for path in HERE.glob("*.py") if path.name not in NOT_BENCHMARKS):
        sys.stdout.write(f"{script.stem}\n")
        sys.stdout.flush()
        failed += subprocess.run([sys.executable, str(script), "--short"], check=False).returncode != 0  # noqa: S603
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
