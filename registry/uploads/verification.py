"""The check of a foreign version: a child reads its numbers, and by its answer the version is ready or rejected."""

from __future__ import annotations

import tempfile
from pathlib import Path

from django.conf import settings

from adapterhub.artifacts import ArtifactError
from adapterhub.core.actor import system
from adapterhub.jobs.child import Child
from registry.adapter_files.scan_process import REJECTED
from registry.models import AdapterVersion

CHECKER = system("checker")
CHECK_S = 300


def check(version: AdapterVersion) -> None:
    """Read the stored files again and judge them. May be called twice: the first answer counts."""
    if message := judged(version):
        version.reject(message, by=CHECKER)
    else:
        version.passed(by=CHECKER)


def sign_unsigned(version: AdapterVersion) -> str:
    """Sign a version that is ready already, if its files hold; what is wrong with them, or nothing."""
    fault = judged(version)
    if not fault:
        version.sign_late(by=CHECKER)
    return fault


def judged(version: AdapterVersion) -> str:
    """What is wrong with the stored files, or nothing."""
    settings.WORK_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=settings.WORK_DIR) as scratch:
        try:
            return fault_of(version.stored(Path(scratch) / "stored"))
        except ArtifactError as error:
            return str(error)


def fault_of(folder: Path) -> str:
    """What the child says against the folder, or nothing."""
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
    return "Its numbers could not be read within the limits of memory and time: it was not taken."
