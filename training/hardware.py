"""Detection of this host's devices without torch: the GPUs that nvidia-smi reports, else the host's memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
QUERIED = "index,name,memory.total,memory.free"
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
CGROUP_USED = Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class DetectedDevice:
    """A detected device: its number on the host, kind (`cuda` or `cpu`), name and sizes in bytes."""

    place: int
    kind: str
    name: str
    memory_bytes: int
    free_bytes: int
    disk_free_bytes: int

    def as_fields(self) -> dict[str, Any]:
        """Return the fields for the row in the database: all but `place`."""
        return {name: value for name, value in asdict(self).items() if name != "place"}


def detect(folder: Path) -> list[DetectedDevice]:
    """Return the host's GPUs, else the host itself as one device.

    The folder is created if it is missing; the free space of its disk is reported with each device.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    disk = shutil.disk_usage(folder).free
    return gpus(disk) or [processor(disk)]


def gpus(disk: int) -> list[DetectedDevice]:
    """Return the GPUs that nvidia-smi reports; an empty list without that program, or if it exits with an error.

    `disk` is the number of free bytes to state for each. Raises TimeoutExpired if it does not answer within 20 seconds.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, f"--query-gpu={QUERIED}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603 - argv list
    return parsed(answer.stdout, disk) if answer.returncode == 0 else []


def parsed(text: str, disk: int) -> list[DetectedDevice]:
    """Parse nvidia-smi's lines `index, name, total MiB, free MiB`; skip lines without numeric memory.

    `disk` is the number of free bytes to state for each device.
    """
    lines = [[word.strip() for word in line.split(",")] for line in text.splitlines()]
    return [
        DetectedDevice(int(place), "cuda", name, int(total) * MIB, int(free) * MIB, disk)
        for place, name, total, free in lines
        if total.isdecimal() and free.isdecimal()
    ]


def processor(disk: int) -> DetectedDevice:
    """Return the host as a device with its memory, or the container's limit if that is lower.

    `disk` is the number of free bytes to state for it.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    limit, used = number_in(CGROUP_LIMIT), number_in(CGROUP_USED)
    if limit is not None and limit < total:
        total, free = limit, max(0, limit - (used or 0))
    return DetectedDevice(0, "cpu", f"{os.cpu_count()} CPU cores", total, free, disk)


def number_in(path: Path) -> int | None:
    """Read a number from a kernel file; None if there is no file, or its content is not a number (no limit)."""
    text = path.read_text().strip() if path.is_file() else ""
    return int(text) if text.isdecimal() else None
