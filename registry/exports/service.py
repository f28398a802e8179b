"""A version's files for use elsewhere: as stored, or rewritten by a child process, because only that may load torch."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from django.conf import settings

from adapterhub.artifacts import ArtifactError, File, StoreAway, digest_of
from adapterhub.core.errors import Conflict, Unavailable
from adapterhub.jobs.child import Child
from registry.adapter_files.manifest import read_parts
from registry.models import Adapter, AdapterVersion

EXPORT_S = 300
# The earliest date that a zip can hold: equal files make an equal archive.
DATE = (1980, 1, 1, 0, 0, 0)


class Format(StrEnum):
    PEFT = "peft"
    PORTABLE = "portable"
    MERGED = "merged"
    GGUF = "gguf"


class Dtype(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"


def download(version: AdapterVersion) -> IO[bytes]:
    """A zip of the files as they were published, verified as they are read into it. Raises Unavailable."""
    settings.WORK_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    with readable(version), version.opened() as folder:
        archive, files = zipped(folder)
        if digest_of(files) != version.digest:
            archive.close()
            raise ArtifactError("its files were changed in the store.")
        return archive


def export(version: AdapterVersion, form: Format, dtype: Dtype) -> IO[bytes]:
    """A zip of the adapter as `peft`, `portable` or `gguf`, or of the base with it merged; each checked against PEFT.

    Raises Conflict where GGUF cannot be written, and Unavailable when the store or the child fails.
    """
    if form == Format.GGUF and not find_spec("gguf"):
        raise Conflict("The package gguf is not installed here: `pip install adapterhub[gguf]`.", code="no_gguf")
    with scratch_copy(version) as stored:
        base = version.adapter.base_model.folder
        return zipped(rewrite(stored, base, stored.with_name("export"), form, dtype))[0]


@contextmanager
def scratch_copy(version: AdapterVersion) -> Iterator[Path]:
    settings.WORK_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=settings.WORK_DIR) as scratch:
        yield fetched(version, Path(scratch) / "stored")


def fetched(version: AdapterVersion, target: Path) -> Path:
    with readable(version):
        return version.fetch(target)


@contextmanager
def readable(version: AdapterVersion) -> Iterator[None]:
    """Raises Unavailable when the store does not give the files, or others."""
    try:
        yield
    except (ArtifactError, StoreAway) as error:
        raise Unavailable(f"The files of {version} cannot be read: {error}", code="artifact_unreadable") from error


def folded(adapter: Adapter, given: Path) -> Path:
    """A foreign adapter whose scales differ, with each scale in its B, in a new folder beside it. Raises Invalid."""
    # The child reads the files with a library: not before we have read the header.
    read_parts(given, adapter.base_model.linear_shapes(), adapter.base_model.layers)
    return rewrite(given, adapter.base_model.folder, given.with_name("folded"), "folded", Dtype.FP32)


def rewrite(stored: Path, base: Path, target: Path, form: str, dtype: Dtype) -> Path:
    """Run the export in a child; `target` is a new folder beside its log."""
    run_child("export", ["registry.exports.process", form, dtype, str(stored), str(base), str(target)], target.parent)
    return target


def run_child(what: str, arguments: list[str], folder: Path) -> None:
    """Run a child that writes its files in the folder. Raises Unavailable with the last line of its log."""
    log = folder / "log.txt"
    child = Child(arguments, folder / "events.jsonl", log)
    try:
        status = child.wait(EXPORT_S)
    finally:
        child.kill()
    if status is None:
        raise Unavailable(f"The {what} took over {EXPORT_S} s and was stopped: try again.", code=f"{what}_failed")
    if status:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it ended without a word"]
        raise Unavailable(f"The {what} failed: {lines[-1][:300]}", code=f"{what}_failed")


def zipped(folder: Path) -> tuple[IO[bytes], list[File]]:
    """An open file at its start, which is gone when it is closed, and what went into it. Weights do not shrink, so
    nothing is compressed.
    """
    archive = tempfile.TemporaryFile(dir=settings.WORK_DIR)  # noqa: SIM115 - the response closes it
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        files = [pack(path, target) for path in sorted(folder.iterdir())]
    archive.seek(0)
    return archive, files


def pack(path: Path, archive: zipfile.ZipFile) -> File:
    """Add the file; what was read is what is told of it."""
    size, digest = 0, hashlib.sha256()
    entry = zipfile.ZipInfo(path.name, DATE)
    with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
        while block := source.read(2**20):
            digest.update(block)
            size += sink.write(block)
    return File(path.name, size, digest.hexdigest())
