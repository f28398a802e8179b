"""Temporary files that can be told from those of killed processes, errors of full disks, and durable folders."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from adapterhub.core.errors import OutOfSpace

# What `tempfile` begins every name with.
PREFIX = "tmp"
# Between its creation and its lock a folder looks like one that was left behind.
YOUNG_S = 5.0
# EFBIG: the limit of the process or of the file system on the size of one file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def temporary_folder(parent: Path, prefix: str = PREFIX) -> Iterator[Path]:
    """Yield a new folder in `parent` and delete it afterwards.

    Raises OutOfSpace when the disk is full, also in the block.
    """
    with space_in(parent), tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as name, locked(Path(name)):
        yield Path(name)


@contextmanager
def temporary_file(parent: Path) -> Iterator[IO[bytes]]:
    """Yield a nameless temporary file; after the block it stays open for the caller, at position 0.

    Raises OutOfSpace if the disk is full. After an error the file is closed here: bytes that were not written would
    fail once more when it is collected.
    """
    with space_in(parent):
        file = tempfile.TemporaryFile(dir=parent)  # noqa: SIM115 - the caller closes it
        try:
            yield file
            file.seek(0)
        except BaseException:
            with suppress(OSError):
                file.close()
            raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock on a folder or file during the block, so that `sweep` spares it; it ends with this process."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def sweep(parent: Path, pattern: str = f"{PREFIX}*") -> None:
    """Delete the temporary files and folders in `parent` that match the pattern and whose process has ended."""
    for path in parent.glob(pattern):
        if is_left_behind(path):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def is_left_behind(path: Path) -> bool:
    """Return True if nobody holds a lock on the folder or file, and it is over YOUNG_S seconds old.

    A younger one may be about to be locked.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(descriptor).st_mtime > YOUNG_S
    except OSError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def space_in(folder: Path) -> Iterator[None]:
    """Convert the error of a full disk in the block to OutOfSpace, which names the folder."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise out_of_space(folder) from error


def out_of_space(folder: Path) -> OutOfSpace:
    """Return an OutOfSpace error for the caller to raise; its message names the folder whose disk is full."""
    return OutOfSpace(f"The disk of {folder} is full and nothing was kept: make room there, then try again.")


def is_full(error: OSError) -> bool:
    """Return True for the error of a full disk, a quota or a limit on the size of a file.

    `shutil` collects the errors of a folder's files as text.
    """
    if isinstance(error, shutil.Error):
        return any(f"[Errno {code}]" in str(error) for code in FULL)
    return error.errno in FULL


def require_space(folder: Path, log: str) -> None:
    """Raise OutOfSpace if a child process failed because the folder's disk was full.

    `log` is its output, as far as the disk took it. A disk with almost no space left counts, too.
    """
    if any(os.strerror(code) in log for code in FULL) or shutil.disk_usage(folder).free < 2**16:
        raise out_of_space(folder.parent)


def heal(partial: Path, target: Path) -> None:
    """Replace the files of a damaged folder one by one, so that it never vanishes under a process that uses it.

    Files that `partial` does not have are deleted.
    """
    intact = {path.relative_to(partial) for path in partial.rglob("*") if path.is_file()}
    for surplus in [path for path in target.rglob("*") if path.is_file() and path.relative_to(target) not in intact]:
        surplus.unlink()
    for name in sorted(intact):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / name, target / name)
    flush(target)


def flush(folder: Path) -> None:
    """Write every file of the folder, and their names, durably to disk (fsync)."""
    for path in [*folder.rglob("*"), folder]:
        flush_entry(path)


def flush_entry(path: Path) -> None:
    """Write a file's bytes, or the names in a folder, durably to disk (fsync)."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def appear(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`. If a concurrent writer was first, its folder, with the same bytes, stays."""
    try:
        os.rename(partial, target)
    except OSError:
        if not target.is_dir():
            raise
