"""Storage of the installation: the artifact store, and this host's folder for work in progress."""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.files.uploadedfile import TemporaryUploadedFile, UploadedFile
from django.core.files.uploadhandler import FileUploadHandler, TemporaryFileUploadHandler

from adapterhub import scratch_files
from adapterhub.artifacts import ArtifactStore, open_store
from adapterhub.core.errors import OutOfSpace, TooMany

# A place is free again when an export or a comparison ends, mostly within seconds.
WAIT_S = 10.0


def store() -> ArtifactStore:
    """Return the installation's artifact store."""
    return open_store(
        settings.ARTIFACT_STORE,
        endpoint_url=settings.S3_ENDPOINT_URL,
        addressing=settings.S3_ADDRESSING,
        scratch=work_folder(),
    )


def work_folder() -> Path:
    """Return the folder for work in progress; if missing, it is created, with access for this user only."""
    folder: Path = settings.WORK_DIR
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder in the work folder and delete it afterwards.

    Raises OutOfSpace when the disk is full, also in the block.
    """
    with scratch_files.temporary_folder(work_folder()) as folder:
        yield folder


def sweep_work_folder() -> None:
    """Delete temporary files of killed processes in the work folder, the models' folders, and a store on this host."""
    scratch_files.sweep(work_folder())
    for parent in (work_folder(), settings.MODELS_DIR, settings.SERVED_DIR, Path(settings.ARTIFACT_STORE)):
        for pattern in (".partial-copy-*", "*/.partial-copy-*"):
            scratch_files.sweep(parent, pattern)


@contextmanager
def place_for_child(project_id: int) -> Iterator[None]:
    """Hold a place for a child process, of the limited number of the project and of this host, during the block.

    A place is a locked file, which is free as soon as its process has ended. Raises TooMany when all are taken.
    """
    with ExitStack() as places:
        places.enter_context(one_of(f"project-{project_id}", settings.PROJECT_CHILDREN, "this project"))
        places.enter_context(one_of("host", settings.CHILDREN, "this host"))
        yield


@contextmanager
def one_of(name: str, count: int, whose: str) -> Iterator[None]:
    """Hold one of `count` places with the name during the block; 0 means no limit.

    Raises TooMany when all are taken.
    """
    file = free_place(name, count) if count else None
    if count and file is None:
        raise TooMany(
            f"{count} exports, comparisons or checks of {whose} are running already: try again in a moment.",
            wait_s=WAIT_S,
        )
    try:
        yield
    finally:
        if file:
            file.close()


def free_place(name: str, count: int) -> IO[str] | None:
    """Return the file of a free place, open and locked; None if all `count` are taken.

    Raises OutOfSpace if the disk is full.
    """
    folder = settings.HOME / "places"
    for number in range(count):
        with scratch_files.space_in(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (folder / f"{name}-{number}").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return file
    return None


class WorkFolderFile(TemporaryUploadedFile):
    """A large upload in the work folder; its file is locked until it is closed, so that `sweep` spares it."""

    def __init__(
        self, name: str, content_type: str | None, size: int, charset: str | None, extra: dict[str, Any] | None = None
    ) -> None:
        """Create the file; its folder need not exist before, unlike that of Django's setting."""
        file = tempfile.NamedTemporaryFile(suffix=".upload", dir=work_folder())  # noqa: SIM115 - the request closes it
        fcntl.flock(file, fcntl.LOCK_SH)
        UploadedFile.__init__(self, file, name, content_type, size, charset, extra)


class WorkFolderUploadHandler(TemporaryFileUploadHandler):
    """Django's handler of large uploads, with files in the work folder. Raises OutOfSpace when its disk is full."""

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        """Create the file of an upload in the work folder. Raises OutOfSpace if its disk is full."""
        FileUploadHandler.new_file(self, *args, **kwargs)
        with scratch_files.space_in(work_folder()):
            self.file = WorkFolderFile(str(self.file_name), self.content_type, 0, self.charset, self.content_type_extra)

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        """Write a chunk; close the file, which deletes it, and raise OutOfSpace when the disk is full."""
        try:
            with scratch_files.space_in(work_folder()):
                super().receive_data_chunk(raw_data, start)
        except OutOfSpace:
            # What could not be written fails again when the file is closed.
            with suppress(OSError):
                self.file.close()
            raise

    def file_complete(self, file_size: int) -> Any:
        """Return the complete file. Raises OutOfSpace if its disk is full."""
        with scratch_files.space_in(work_folder()):
            return super().file_complete(file_size)
