"""The child that scans a foreign adapter, within limits that it sets itself.

    python -m registry.adapter_files.scan_process FOLDER

Exit 0: its numbers are numbers. Exit 3: they are not, and the last line says why. Anything else: it was stopped.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

from registry.adapter_files.finite_check import fault_in
from registry.adapter_files.manifest import WEIGHTS

MEMORY_BYTES = 2 * 2**30
CPU_S = 120
REJECTED = 3


def limit() -> None:
    """A file that makes the scan run away ends this process, nothing else."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def main(folder: Path) -> int:
    limit()
    if fault := fault_in(folder / WEIGHTS):
        sys.stdout.write(f"{fault}\n")
        return REJECTED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
