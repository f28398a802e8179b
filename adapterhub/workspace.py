"""Storage of the installation: the artifact store, and this host's folder for work in progress."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from adapterhub.artifacts import ArtifactStore, open_store


def store() -> ArtifactStore:
    """Open the installation's artifact store."""
    return open_store(settings.ARTIFACT_STORE, endpoint_url=settings.S3_ENDPOINT_URL, addressing=settings.S3_ADDRESSING)


def work_folder() -> Path:
    """Return the folder for work in progress; creates it on the first call, with access for this user only."""
    folder: Path = settings.WORK_DIR
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a folder of its own in the work folder; delete it afterwards."""
    with tempfile.TemporaryDirectory(dir=work_folder()) as folder:
        yield Path(folder)
