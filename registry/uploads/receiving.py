"""The files of an adapter as somebody sent them, put into a folder as PEFT's two files, and published from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile

from adapterhub.core.actor import Actor
from adapterhub.core.errors import Invalid
from registry.adapter_files.findings import fault, printable, refusal
from registry.adapter_files.header_rewrite import join
from registry.adapter_files.safetensors_header import Unreadable
from registry.adapter_files.selection import FILES, Selection, base_name, select
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import WEIGHTS
from registry.exports import zip_export as exports
from registry.models import Adapter, AdapterVersion
from registry.uploads.archive import is_zip, unpack
from registry.uploads.received_files import write_upload
from registry.uploads.unservable import keep as keep_unservable


@dataclass(frozen=True)
class Received:
    """A folder with PEFT's two files; `notes` say what was chosen, renamed and left out of what was sent."""

    folder: Path
    notes: tuple[str, ...] = ()


def receive(files: Sequence[UploadedFile[bytes]], folder: Path, paths: Sequence[str] = ()) -> Received:
    """Put the adapter among the files into the new folder `folder`, as PEFT's two files.

    A single file may be a zip. `paths` are all paths in the sender's folder, of which `files` are the adapter's; a
    sender's name never becomes a path here. Raises Invalid if there is no adapter or it cannot be read, and OutOfSpace
    if the disk is full when a zip is unpacked.
    """
    folder.mkdir()
    try:
        if len(files) == 1 and files[0].file and is_zip(files[0].file):
            chosen, parts = unpack(files[0].file, folder, settings.UPLOAD_BYTES)
            notes: tuple[str, ...] = ("The zip was unpacked.", *chosen.notes)
        else:
            chosen = select(paths or [file.name or "" for file in files])
            parts, notes = written(files, chosen, folder), chosen.notes
        put_together(parts, folder)
    except Unreadable as error:
        raise refusal([error.finding]) from None
    return Received(folder, notes)


def receive_local(files: Mapping[str, Path], folder: Path, paths: Sequence[str] = ()) -> Received:
    """Put the adapter among files on this server into a new folder, as PEFT's two files.

    `files` maps each path, or with `paths` each file's name, to the file, which is moved. The rest, with the errors, is
    as in `receive`.
    """
    folder.mkdir()
    try:
        first, *others = files.values()
        if not others and is_zip_file(first):
            with first.open("rb") as packed:
                chosen, parts = unpack(packed, folder, settings.UPLOAD_BYTES)
            notes: tuple[str, ...] = ("The zip was unpacked.", *chosen.notes)
        else:
            chosen = select(paths or list(files))
            names = [base_name(path) if paths else path for path in chosen.files]
            if missing := [name for name in names if name not in files]:
                raise not_sent(missing[0])
            parts = [files[name].rename(folder / str(place)) for place, name in enumerate(names)]
            notes = chosen.notes
        put_together(parts, folder)
    except Unreadable as error:
        raise refusal([error.finding]) from None
    return Received(folder, notes)


def not_sent(name: str) -> Invalid:
    """Return, without raising it, the error of a file that was named and not sent."""
    return refusal([fault("not_sent", FILES, f"{printable(name)} was named and not sent.", "Send the folder again.")])


def is_zip_file(path: Path) -> bool:
    """Return True for a file that begins as a zip does."""
    with path.open("rb") as file:
        return is_zip(file)


def written(files: Sequence[UploadedFile[bytes]], chosen: Selection, folder: Path) -> list[Path]:
    """Write the chosen files as `0`, `1`, ... into the folder and return their paths.

    Raises Invalid if a chosen file was not sent.
    """
    by_name = {file.name: file for file in files}
    parts = []
    for place, path in enumerate(chosen.files):
        if base_name(path) not in by_name:
            raise not_sent(base_name(path))
        parts.append(folder / str(place))
        write_upload(by_name[base_name(path)], parts[-1])
    return parts


def put_together(parts: list[Path], folder: Path) -> None:
    """Move the configuration, the first part, and the weights to their names in the folder.

    Shards are joined and deleted. Raises Unreadable if a shard cannot be read, or two have a tensor of the same name.
    """
    config, *weights = parts
    if len(weights) == 1:
        weights[0].rename(folder / WEIGHTS)
    else:
        join(weights, folder / WEIGHTS)
        for shard in weights:
            shard.unlink()
    config.rename(folder / CONFIG)


def publish(
    adapter: Adapter, folder: Path, *, fold: bool, keep: bool, confirmation: str, lineage: dict[str, Any], by: Actor
) -> AdapterVersion:
    """Publish an uploaded adapter as its adapter's next version and return it.

    With `fold` differing scales are folded into B. With `keep` an adapter that engines cannot serve is stored without
    being served. `confirmation` is a person's reason why it fits although it names another base model, or "". Raises
    Invalid if both are given or the files are not valid; Conflict if they are published already, cannot be folded, or
    could be served and are to be kept; Unavailable if the child process that folds fails, and TooMany if the project
    has too many such children.
    """
    if keep and fold:
        raise Invalid("What is kept stays as it was sent, its scales, too: name keep or fold.", field="fold")
    if keep:
        return keep_unservable(adapter, folder, by=by, confirmation=confirmation, lineage=lineage)
    sent = None
    if fold:
        folder, sent = exports.folded(adapter, folder, confirmation)
    return AdapterVersion.publish(
        adapter,
        folder,
        method="upload",
        by=by,
        foreign=True,
        may_move=True,
        sent=sent,
        confirmation=confirmation,
        lineage=lineage,
    )
