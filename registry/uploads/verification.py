"""Check of an uploaded version: a child process reads its weights, then the version becomes ready or rejected."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.artifacts import ArtifactError
from adapterhub.core.actor import system
from adapterhub.jobs.child import Child
from adapterhub.workspace import scratch
from registry.adapter_files.scan_process import REJECTED
from registry.models import AdapterVersion

CHECKER = system("checker")
CHECK_S = 300


@dataclass(frozen=True)
class Scan:
    """The result of a scan: its fault, "" if there is none, and the sizes of the updates with findings on them.

    `measured` is empty if the scan measured nothing.
    """

    fault: str
    measured: dict[str, Any] = field(default_factory=dict)


def check(version: AdapterVersion) -> None:
    """Scan the version's stored files; mark it ready and sign it, or reject it.

    It is safe to call twice: the first result counts. Raises StoreAway, and changes nothing, if the store does not
    answer.
    """
    scan = scanned(version)
    if scan.fault:
        version.reject(scan.fault, by=CHECKER, scan=scan.measured)
    else:
        version.passed(by=CHECKER, scan=scan.measured)


def sign_unsigned(version: AdapterVersion) -> str:
    """Sign a ready version that has no signature, if its files pass the scan; return the fault, "" if there is none.

    Raises StoreAway if the store does not answer.
    """
    fault = scanned(version).fault
    if not fault:
        version.sign_late(by=CHECKER)
    return fault


def scanned(version: AdapterVersion) -> Scan:
    """Copy the version's stored files, scan them, and return the result.

    Files that are missing or changed are a fault. Raises StoreAway if the store does not answer.
    """
    with scratch() as folder:
        norms = folder / "norms.json"
        norms.write_text(json.dumps(version.adapter.base_model.measured_norms()))
        try:
            return scan_of(version.stored(folder / "stored"), norms)
        except ArtifactError as error:
            return Scan(str(error))


def scan_of(folder: Path, norms: Path) -> Scan:
    """Scan the folder in a child process; if its limits stopped the child, that is a fault of the files.

    `norms` is the JSON file with the norms of the base model's weights.
    """
    log, out = folder.with_name("log.txt"), folder.with_name("scan.json")
    arguments = ["registry.adapter_files.scan_process", str(folder), str(norms), str(out)]
    child = Child(arguments, folder.with_name("events.jsonl"), log)
    try:
        status = child.wait(CHECK_S)
    finally:
        child.kill()
    measured = json.loads(out.read_bytes()) if status in (0, REJECTED) and out.is_file() else {}
    if status == 0:
        return Scan("", measured)
    if status == REJECTED:
        return Scan(log.read_text(errors="replace").strip()[-1000:], measured)
    return Scan("Its weights could not be read within the limits of memory and time: it was rejected.")
