"""An uploaded file as a temporary file on this process' disk, while it is checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.core.files.uploadedfile import UploadedFile

from adapterhub.workspace import scratch


@contextmanager
def copied(upload: UploadedFile[bytes]) -> Iterator[Path]:
    """Copy the upload to a temporary file in chunks, so that memory stays constant; delete it afterwards."""
    with scratch() as folder:
        path = folder / "rows"
        with path.open("wb") as file:
            for chunk in upload.chunks():
                file.write(chunk)
        yield path
