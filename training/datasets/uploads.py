"""An uploaded file: a temporary copy while it is checked, and the format and mapping that the sender states."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.core.files.uploadedfile import UploadedFile

from adapterhub.core.errors import Invalid
from adapterhub.workspace import scratch, store
from training.datasets import readers, rows
from training.datasets.text_streams import inner_name

SENT_AS = "send its rows as JSON lines, CSV or Parquet"
# Files that are no table of rows, by the last suffix of their names: what each is, and what to do.
REFUSED = {
    **dict.fromkeys(
        (".zip", ".7z", ".rar", ".tar", ".tgz"), "an archive: send the file of rows in it, plain or as .gz"
    ),
    **dict.fromkeys((".xz", ".lz4", ".br", ".lzma"), "packed in a way that is not read: pack it as .gz, .zst or .bz2"),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers"), "a spreadsheet: save its table as CSV"),
    **dict.fromkeys((".xml", ".html", ".htm"), f"{{}}, which is not read: {SENT_AS}"),
    **dict.fromkeys((".yaml", ".yml", ".toml"), f"{{}}, which is not read: {SENT_AS}"),
    **dict.fromkeys((".orc", ".avro", ".h5", ".hdf5", ".sqlite", ".db", ".npy", ".npz"), f"{{}}: {SENT_AS}"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".bin"), f"{{}}, which could run a program when it is read: {SENT_AS}"),
    **dict.fromkeys((".pdf", ".docx", ".doc", ".rtf", ".odt", ".epub"), "a document: save its text as .txt"),
}


@contextmanager
def copied(upload: UploadedFile[bytes]) -> Iterator[Path]:
    """Yield the path of a temporary copy of the upload, which is deleted afterwards.

    It is made in chunks, so that memory stays constant. Raises OutOfSpace if the disk is full.
    """
    with scratch() as folder:
        path = folder / "rows"
        with path.open("wb") as file:
            for chunk in upload.chunks():
                file.write(chunk)
        yield path


def sha256_of(file: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_format(named: str, filename: str) -> str:
    """Return the named format, else the one of the file name's suffix. Raises Invalid if neither is known."""
    form = named or readers.format_of(filename) or ""
    if form not in readers.FORMATS:
        message = f"The format of {filename!r} is unknown: name it (format: {', '.join(readers.FORMATS)})."
        suffix = Path(inner_name(filename)).suffix.lower()
        if suffix in REFUSED:
            message = f"{filename!r} is {REFUSED[suffix].format(suffix[1:].upper())}."
        raise Invalid(message, field="format", code="unknown_format")
    return form


def known_mapping(mapping: dict[str, str]) -> dict[str, str]:
    """Return the mapping unchanged. Raises Invalid unless it maps names of our columns to texts."""
    for name, column in mapping.items():
        if name not in rows.COLUMNS or not isinstance(column, str) or not column:
            message = f"mapping.{name}: a mapping names the file's column for {', '.join(rows.COLUMNS)}."
            raise Invalid(message, field="mapping", code="bad_mapping")
    return mapping


def stored_alone(file: Path) -> str:
    """Put a copy of the file, named `rows`, into the store as an artifact; return its digest.

    Raises OutOfSpace if the disk is full.
    """
    with scratch() as folder:
        shutil.copyfile(file, folder / "rows")
        return store().put_dir(folder)
