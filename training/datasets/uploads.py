"""An uploaded file on the disk of this process, while it is looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.core.files.uploadedfile import UploadedFile

from training.workspace import scratch


@contextmanager
def copied(upload: UploadedFile) -> Iterator[Path]:
    """Chunk by chunk, so that memory stays flat; gone afterwards."""
    with tempfile.NamedTemporaryFile(dir=scratch()) as file:
        for chunk in upload.chunks():
            file.write(chunk)
        file.flush()
        yield Path(file.name)
