"""Child process that scans an uploaded adapter, under memory and CPU limits that it sets for itself.

    python -m registry.adapter_files.scan_process FOLDER NORMS.json OUT.json

Exit 0: the weights are valid. Exit 3: they are not, and the last line of output says why. Any other exit: the scan was
killed or failed.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

from registry.adapter_files.findings import faults_of
from registry.adapter_files.finite_check import fault_in
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import WEIGHTS
from registry.adapter_files.update_sizes import size_findings, update_sizes

MEMORY_BYTES = 2 * 2**30
CPU_S = 120
REJECTED = 3


def limit() -> None:
    """Limit this process's memory (2 GiB) and CPU time (120 s), so that a malicious file can end this process only."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))


def main(folder: Path, norms: Path, target: Path) -> int:
    """Scan the weights under the limits; return 0, or print the fault to stdout and return REJECTED.

    `norms` is a JSON file of the base weights' norms by module. The sizes of the updates and the findings on them are
    written as JSON to `target`, unless the weights hold NaN or infinity or have no effect.
    """
    limit()
    if fault := fault_in(folder / WEIGHTS):
        sys.stdout.write(f"{fault}\n")
        return REJECTED
    sizes = update_sizes(folder, json.loads((folder / CONFIG).read_bytes()), json.loads(norms.read_bytes()))
    findings = list(size_findings(sizes))
    measured = {
        "updates": {name: asdict(size) for name, size in sizes.items()},
        "measured": [finding.as_dict() for finding in findings],
    }
    target.write_text(json.dumps(measured))
    if faults := faults_of(findings):
        sys.stdout.write(f"{faults[0].message}\n")
        return REJECTED
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
