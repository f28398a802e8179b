"""Files of an adapter as a request brings them: each is stored under a fixed name in a folder of the server."""

from __future__ import annotations

import os
from pathlib import Path

from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile


def write_upload(upload: UploadedFile[bytes], path: Path) -> None:
    """Store an uploaded file at `path`; a large one, which is on disk already, is moved if it is on the same disk."""
    if isinstance(upload, TemporaryUploadedFile) and is_on_disk_of(path, upload.temporary_file_path()):
        upload.flush()
        os.rename(upload.temporary_file_path(), path)
        path.chmod(0o644)
        return
    with path.open("wb") as target:
        for chunk in upload.chunks():
            target.write(chunk)


def is_on_disk_of(path: Path, other: str) -> bool:
    """Return True if the folder of `path` and the file `other` lie on one file system; `path` need not exist."""
    return os.stat(path.parent).st_dev == os.stat(other).st_dev
