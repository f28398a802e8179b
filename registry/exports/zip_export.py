"""Export of a version's files as a zip: as stored, or rewritten by a child process.

The rewriting needs torch, which only a child process may load.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from django.http import Http404

from adapterhub.artifacts import ArtifactError, File, StoreAway, digest_of
from adapterhub.core.errors import Conflict, Unavailable
from adapterhub.jobs.child import REFUSED, Child
from adapterhub.scratch_files import require_space, temporary_file
from adapterhub.workspace import place_for_child, scratch, work_folder
from registry.adapter_files.manifest import Manifest
from registry.models import Adapter, AdapterVersion

EXPORT_S = 300
# A fixed date, the earliest that a zip can hold, so that equal files make equal archives.
DATE = (1980, 1, 1, 0, 0, 0)


class Format(StrEnum):
    """The formats of an export.

    PEFT keeps ranks and scales, PORTABLE has one rank and the scale 1, MERGED is the whole model, GGUF is for
    llama.cpp.
    """

    PEFT = "peft"
    PORTABLE = "portable"
    MERGED = "merged"
    GGUF = "gguf"


class Dtype(StrEnum):
    """The number types of exported weights."""

    FP32 = "fp32"
    BF16 = "bf16"


def download(version: AdapterVersion) -> IO[bytes]:
    """Return an open zip of the published files.

    Raises Unavailable if the store cannot deliver them, if they are not what the digest says, and if the version's
    signature is not valid; and OutOfSpace.
    """
    with readable(version), version.opened() as folder:
        archive, files = zipped(folder)
        if digest_of(files) != version.digest:
            archive.close()
            raise ArtifactError("its files have been changed in the store.")
        return archive


def verified_file(version: AdapterVersion, name: str) -> IO[bytes]:
    """Return one published file, open at its beginning, after the version's files were compared with its digest.

    Raises Http404 for a name that the version lacks, Unavailable as `download` does, and OutOfSpace.
    """
    with scratch() as folder, readable(version):
        version.require_downloadable()
        stored = version.stored(folder / "stored")
        if name not in {path.name for path in stored.iterdir()}:
            raise Http404
        with temporary_file(work_folder()) as copy, (stored / name).open("rb") as source:
            shutil.copyfileobj(source, copy, 2**20)
    return copy


def file_sizes(version: AdapterVersion) -> dict[str, int]:
    """Return the bytes of each published file by its name, without verifying the files.

    Raises Unavailable if the store cannot give them or the version's signature is not valid.
    """
    with readable(version), version.opened() as folder:
        return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def export(version: AdapterVersion, form: Format, dtype: Dtype) -> IO[bytes]:
    """Return an open zip of the adapter as `peft`, `portable`, `gguf` or `merged` into its base, checked against PEFT.

    Raises Conflict if the version is unservable, the package gguf is not installed or the files cannot be exported so,
    Unavailable if the store or the child process fails, TooMany if the project has too many such children, and
    OutOfSpace.
    """
    if version.is_kept:
        message = f"Engines cannot serve {version}: download it as it is, or reduce it to a plain LoRA and export that."
        raise Conflict(message, code="unservable")
    if form == Format.GGUF and not find_spec("gguf"):
        raise Conflict("The package gguf is not installed here: `pip install adapterhub[gguf]`.", code="no_gguf")
    with place_for_child(version.project.pk), scratch_copy(version) as stored:
        base = version.adapter.base_model.folder
        return zipped(rewrite(stored, base, stored.with_name("export"), form, dtype))[0]


@contextmanager
def scratch_copy(version: AdapterVersion) -> Iterator[Path]:
    """Provide a folder with a verified copy of the version's files, which is deleted afterwards.

    Raises Unavailable if the files are lost or were changed, and OutOfSpace.
    """
    with scratch() as folder:
        yield fetched(version, folder / "stored")


def fetched(version: AdapterVersion, target: Path) -> Path:
    """Copy the version's files to `target` and return `target`.

    Raises Unavailable for files that are lost, were changed or whose signature is not valid.
    """
    with readable(version):
        return version.fetch(target)


@contextmanager
def readable(version: AdapterVersion) -> Iterator[None]:
    """Context manager that raises Unavailable if the store cannot deliver the version's files, or they were changed."""
    try:
        yield
    except (ArtifactError, StoreAway) as error:
        raise Unavailable(f"The files of {version} cannot be read: {error}", code="artifact_unreadable") from error


def folded(adapter: Adapter, folder: Path, confirmation: str = "") -> tuple[Path, Manifest]:
    """Fold the differing scales of an uploaded adapter into its B matrices, in a child process.

    Returns the new folder beside `folder`, and the manifest of what was sent. `confirmation` is a person's reason why
    the adapter fits although it names another base model. Raises Invalid if the files are not an adapter of the base
    model, Conflict if they cannot be folded, TooMany if the project has too many such children, Unavailable if the
    child process fails, and OutOfSpace.
    """
    # The child process opens the files with a library, so they are checked and written anew first.
    sent = adapter.read(folder, foreign=True, any_scale=True, confirmation=confirmation)
    with place_for_child(adapter.project_id):
        base = adapter.base_model.folder
        return rewrite(folder, base, folder.with_name("folded"), "folded", Dtype.FP32), sent


def rewrite(stored: Path, base: Path, target: Path, form: str, dtype: Dtype) -> Path:
    """Run the export in a child process and return `target`, a new folder; its log is left beside it.

    `form` is one of Format or `folded`. Raises Conflict if the files can never be exported so, Unavailable if the child
    fails or takes too long, and OutOfSpace.
    """
    run_child(
        "export", ["registry.exports.export_process", form, dtype, str(stored), str(base), str(target)], target.parent
    )
    return target


def run_child(task: str, arguments: list[str], folder: Path) -> None:
    """Run `python -m ARGUMENTS` as a child process that works in the folder, and wait until it ends.

    Raises Conflict if its input can never give a result, so that a retry is useless, OutOfSpace if the disk is full,
    and Unavailable if it fails for another reason or takes over EXPORT_S seconds, after which it is killed. The errors
    begin with `task` and quote the last line of its log.
    """
    log = folder / "log.txt"
    child = Child(arguments, folder / "events.jsonl", log)
    try:
        status = child.wait(EXPORT_S)
    finally:
        child.kill()
    if status is None:
        raise Unavailable(f"The {task} took over {EXPORT_S} s and was stopped: try again later.", code=f"{task}_failed")
    if status:
        require_space(folder, log.read_text(errors="replace"))
        lines = log.read_text(errors="replace").strip().splitlines() or ["it ended without a message"]
        if status == REFUSED:
            raise Conflict(f"The {task} is not possible: {lines[-1][:300]}", code=f"{task}_refused")
        raise Unavailable(f"The {task} failed: {lines[-1][:300]}", code=f"{task}_failed")


def zipped(folder: Path) -> tuple[IO[bytes], list[File]]:
    """Zip the folder's files, sorted by name, into an open temporary file at position 0.

    Return it with the size and digest of each file. The temporary file is deleted when it is closed. Nothing is
    compressed, because weights do not shrink. Raises OutOfSpace if the disk is full.
    """
    with temporary_file(work_folder()) as archive, zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        files = [pack(path, target) for path in sorted(folder.iterdir())]
    return archive, files


def pack(path: Path, archive: zipfile.ZipFile) -> File:
    """Add the file to the archive and return its name, size and digest, computed from the bytes that were written."""
    size, digest = 0, hashlib.sha256()
    entry = zipfile.ZipInfo(path.name, DATE)
    with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as sink:
        while block := source.read(2**20):
            digest.update(block)
            size += sink.write(block)
    return File(path.name, size, digest.hexdigest())
