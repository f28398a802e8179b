"""File locks that allow one instance per data folder; the kernel frees them when their last holder has ended."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


class Locked(Exception):
    """Raised when another process holds the lock; `pid` is its id as written in the file, 0 when unknown."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"held by process {pid}")
        self.pid = pid


class FileLock:
    """An exclusive lock on a file with the process id of its owner.

    A child that inherits `descriptor` keeps the lock for as long as it lives, so a successor waits for its end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1

    def acquire(self, timeout_s: float = 0.0) -> None:
        """Acquire the lock, waiting up to `timeout_s`. Raises Locked when another process holds it after that."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        if not _lock_within(descriptor, timeout_s):
            os.close(descriptor)
            raise Locked(_written_pid(self.path))
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self.descriptor = descriptor

    def release(self) -> None:
        """Release the lock, unless a child that inherited it still lives; no effect when it is not held."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def holder(path: Path) -> int | None:
    """Return the process id of the lock's holder, 0 if that is not known; None when the lock is free."""
    if not path.exists():
        return None
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return None if _lock_within(descriptor, 0.0, fcntl.LOCK_SH) else _written_pid(path)
    finally:
        os.close(descriptor)


def _lock_within(descriptor: int, timeout_s: float, kind: int = fcntl.LOCK_EX) -> bool:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)


def _written_pid(path: Path) -> int:
    text = path.read_text().strip()
    return int(text) if text.isdecimal() else 0
