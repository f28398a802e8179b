"""Check of an uploaded version: a child process reads its weights, then the version becomes ready or rejected."""

from __future__ import annotations

from pathlib import Path

from adapterhub.artifacts import ArtifactError
from adapterhub.core.actor import system
from adapterhub.jobs.child import Child
from adapterhub.workspace import scratch
from registry.adapter_files.scan_process import REJECTED
from registry.models import AdapterVersion

CHECKER = system("checker")
CHECK_S = 300


def check(version: AdapterVersion) -> None:
    """Scan the version's stored files and mark it ready or rejected. Safe to call twice: the first result counts."""
    if message := judged(version):
        version.reject(message, by=CHECKER)
    else:
        version.passed(by=CHECKER)


def sign_unsigned(version: AdapterVersion) -> str:
    """Sign a ready version that has no signature, if its files pass the scan. Return the fault found, or ""."""
    fault = judged(version)
    if not fault:
        version.sign_late(by=CHECKER)
    return fault


def judged(version: AdapterVersion) -> str:
    """Fetch the version's stored files and scan them. Return the fault found, or ""."""
    with scratch() as folder:
        try:
            return fault_of(version.stored(folder / "stored"))
        except ArtifactError as error:
            return str(error)


def fault_of(folder: Path) -> str:
    """Scan the folder in a child process. Return its fault, a message if it was stopped by its limits, or ""."""
    log = folder.with_name("log.txt")
    child = Child(["registry.adapter_files.scan_process", str(folder)], folder.with_name("events.jsonl"), log)
    try:
        status = child.wait(CHECK_S)
    finally:
        child.kill()
    if status == 0:
        return ""
    if status == REJECTED:
        return log.read_text(errors="replace").strip()[-1000:]
    return "Its weights could not be read within the limits of memory and time: it was rejected."
