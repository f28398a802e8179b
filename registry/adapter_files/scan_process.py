"""Child process that scans an uploaded adapter, under memory and CPU limits that it sets for itself.

    python -m registry.adapter_files.scan_process FOLDER

Exit 0: the weights are valid. Exit 3: they are not, and the last line of output says why. Any other exit: the scan was
stopped.
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
    """Limit this process's memory and CPU time, so that a malicious file can end this process only."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def main(folder: Path) -> int:
    """Scan the weights; print a fault and return REJECTED, or 0."""
    limit()
    if fault := fault_in(folder / WEIGHTS):
        sys.stdout.write(f"{fault}\n")
        return REJECTED
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
