"""Retrieval of a base model's files into the models folder.

The source is a folder that is already there, a snapshot from a hub, or a version's whole checkpoint.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from django.conf import settings

from adapterhub.artifacts import copy_in_one_step
from adapterhub.core.counts import counted
from adapterhub.jobs.child import REFUSED, Child
from adapterhub.workspace import store
from registry.exports import zip_export as exports
from registry.models import AdapterVersion, BaseModel
from registry.models.base_model import require_listed

POLL_S = 1.0
# A download that brings less holds its worker for a day, as one that brings nothing.
SLOWEST_BYTES_PER_S = 1024


class NotFetched(Exception):
    """Raised if the files of a base model cannot be fetched; the message says why."""


def fetch_base_model(model: BaseModel) -> None:
    """Fetch the model's files into its folder, unless the folder exists.

    Raises NotFetched, DomainError, ArtifactError or OSError with the reason, and AdapterVersion.DoesNotExist if the
    version that it is made of is missing.
    """
    if model.folder.is_dir():
        return
    if served_name := model.made_of:
        take_whole(model, AdapterVersion.objects.get(served_name=served_name))
    elif "/" not in model.source or model.source.startswith((".", "/")):
        raise NotFetched(f"There is no folder {model.source!r} in {settings.MODELS_DIR}: put the checkpoint there.")
    else:
        # An operator may have taken the source from the list meanwhile.
        require_listed(model.source, model.folder)
        download(model)


def download(model: BaseModel) -> None:
    """Download a hub snapshot to a temporary folder, then rename it, so that a part of it never looks complete.

    The next call resumes a download that was interrupted. Raises NotFetched if the hub does not deliver the files or
    stalls, or the child process that downloads fails.
    """
    partial = model.folder.with_name(f".partial-{model.slug}")
    partial.mkdir(parents=True, exist_ok=True)
    log = partial / "download.log"
    arguments = ["registry.base_models.download_process", model.source, model.revision, str(partial / "files")]
    child = Child(arguments, partial / "events.jsonl", log)
    try:
        wait_while_it_grows(child, partial)
    finally:
        child.kill()
    if status := child.process.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it ended without a message"]
        if status == REFUSED:
            shutil.rmtree(partial, ignore_errors=True)
        raise NotFetched(f"The hub did not deliver {model.source!r}: {lines[-1][:300]}")
    (partial / "files").rename(model.folder)
    shutil.rmtree(partial, ignore_errors=True)


def wait_while_it_grows(child: Child, folder: Path) -> None:
    """Wait until the child ends.

    Raises NotFetched if the folder's size does not change for DOWNLOAD_STALL_S seconds, or grows in twice that time by
    less than SLOWEST_BYTES_PER_S for each.
    """
    stall_s = settings.DOWNLOAD_STALL_S
    size, changed_at = 0, time.monotonic()
    begin, begun_at = size, changed_at
    while child.wait(POLL_S) is None:
        there, moment = bytes_in(folder), time.monotonic()
        if there != size:
            size, changed_at = there, moment
        if there - begin >= 2 * stall_s * SLOWEST_BYTES_PER_S:
            begin, begun_at = there, moment
        if moment - changed_at > stall_s:
            raise stalled(f"nothing for {stall_s} s", size)
        if moment - begun_at > 2 * stall_s:
            raise stalled(f"only {counted(there - begin, 'byte')} in {2 * stall_s} s", size)


def stalled(brought: str, size: int) -> NotFetched:
    """Return, without raising it, the error of a download that is given up after `size` bytes.

    `brought` says in words what has come lately, such as "nothing for 60 s".
    """
    return NotFetched(f"The hub has sent {brought}, after {size >> 20} MB: register the model again once it answers.")


def bytes_in(folder: Path) -> int:
    """Return the total bytes of all files below the folder; files that vanish meanwhile are not counted."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


def take_whole(model: BaseModel, version: AdapterVersion) -> None:
    """Put the version's whole model into the base model's folder.

    It is the checkpoint that a full training stored, or else the version's adapter merged into its base model. Raises
    ArtifactError if the checkpoint is lost or damaged, OSError, and what `merge` raises.
    """
    if digest := version.metrics.get("checkpoint"):
        store().fetch_dir(digest, model.folder)
    else:
        merge(version, model)


def merge(version: AdapterVersion, model: BaseModel) -> None:
    """Merge the version's adapter into its base model and put the result into the folder of `model`, in one step.

    The numbers are float32 if that is the base's type, otherwise bfloat16. Raises OSError, Unavailable if the adapter's
    files cannot be read or the child process fails, Conflict if they can never be merged, and OutOfSpace.
    """
    base = version.adapter.base_model
    named = base.config.get("dtype") or base.config.get("torch_dtype")
    dtype = exports.Dtype.FP32 if named == "float32" else exports.Dtype.BF16
    with exports.scratch_copy(version) as stored:
        merged = exports.rewrite(stored, base.folder, stored.with_name("merged"), exports.Format.MERGED, dtype)
        copy_in_one_step(merged, model.folder)
