"""A zip that contains an adapter: the adapter's files are chosen by their names and unpacked within limits."""

from __future__ import annotations

import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO

from adapterhub.scratch_files import space_in
from registry.adapter_files.findings import fault
from registry.adapter_files.manifest import MAX_CONFIG_BYTES
from registry.adapter_files.safetensors_header import Unreadable
from registry.adapter_files.selection import FILES, Selection, select
from registry.adapter_files.tensor_names import CONVERT

# The list of an archive's files is read into memory before anything else; a name takes about 100 bytes of it.
MOST_DIRECTORY_BYTES = 2**20
ENDING, ENDING_64 = b"PK\x05\x06", b"PK\x06\x06"
# The end of an archive: its record, and a comment of at most 65,535 bytes; before it lie 76 bytes of a large one.
TAIL_BYTES = 22 + 65_535 + 76
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
IS_ENCRYPTED = 0x1
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError)


def is_zip(file: IO[bytes]) -> bool:
    """Return True for a file that begins as a zip does; PyTorch's pickled files do so, too."""
    file.seek(0)
    return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def unpack(file: IO[bytes], folder: Path, most_bytes: int) -> tuple[Selection, list[Path]]:
    """Unpack the adapter in a zip into the folder; return what was chosen, and the paths of its files.

    The files are named `0`, `1`, ...: the configuration first, then the weights. Raises Unreadable for a zip that is
    damaged, encrypted, without an adapter, or whose adapter has more than `most_bytes`, and OutOfSpace.
    """
    require_short_directory(file)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
            refuse_pickle(entries)
            chosen = select(entries)
            files = [entries[path] for path in chosen.files]
            require_plain(files, most_bytes)
            return chosen, [extracted(archive, entry, folder / str(place)) for place, entry in enumerate(files)]
    except DAMAGED as error:
        cause = f"The zip cannot be read: {str(error)[:100] or type(error).__name__}."
        raise Unreadable(fault("bad_zip", FILES, cause, "Pack it again, or send the files themselves.")) from None


def require_short_directory(file: IO[bytes]) -> None:
    """Check the length of the zip's list of files before a library reads it. Raises Unreadable if it is too long."""
    size = file.seek(0, 2)
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read(TAIL_BYTES)
    lengths = []
    # The library looks at the very end first, then for the last mark.
    for place in (len(tail) - 22, tail.rfind(ENDING)):
        if place >= 0 and tail[place : place + 4] == ENDING:
            lengths.append(int.from_bytes(tail[place + 12 : place + 16], "little"))
            if place >= 76 and tail[place - 76 : place - 72] == ENDING_64:
                lengths.append(int.from_bytes(tail[place - 36 : place - 28], "little"))
    if max(lengths, default=0) > MOST_DIRECTORY_BYTES:
        raise Unreadable(
            fault("large_zip", FILES, "The zip holds thousands of files.", "Send the adapter's folder alone.")
        )


def refuse_pickle(entries: dict[str, zipfile.ZipInfo]) -> None:
    """Raise Unreadable if the zip's entries, by name, are those of a file that PyTorch saved, which holds a pickle."""
    if any(name.endswith("/data.pkl") for name in entries):
        cause = "This is PyTorch's pickle, which no server opens."
        raise Unreadable(fault("pickle", FILES, cause, CONVERT))


def require_plain(files: list[zipfile.ZipInfo], most_bytes: int) -> None:
    """Check the files before they are unpacked: not encrypted, packed by a usual method, within limits.

    Raises Unreadable. The first file is the configuration.
    """
    if any(entry.flag_bits & IS_ENCRYPTED for entry in files):
        raise Unreadable(fault("encrypted_zip", FILES, "The zip needs a password.", "Pack it without one."))
    if any(entry.compress_type not in METHODS for entry in files):
        raise Unreadable(
            fault("zip_method", FILES, "The zip is packed by an unusual method.", "Use `zip` as it comes.")
        )
    if files[0].file_size > MAX_CONFIG_BYTES:
        raise Unreadable(fault("config_too_large", FILES, "The configuration is over 1 MB.", "Send PEFT's file alone."))
    if sum(entry.file_size for entry in files) > most_bytes:
        cause = f"The adapter in the zip is over {most_bytes >> 20:,} MB."
        raise Unreadable(fault("too_large", FILES, cause, "Use `uploads/` of the REST API, or the project's inbox."))


def extracted(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> Path:
    """Write one file of the archive to `target` and return `target`.

    The library stops at the announced size and compares the checksum. Raises OutOfSpace if the disk is full.
    """
    with archive.open(entry) as source, space_in(target.parent), target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 2**20)
    return target
