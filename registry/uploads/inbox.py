"""The inbox: folders of adapters that an operator has put on the server.

Clients name a folder and never a path; a project can take folders only from its own inbox.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from adapterhub.accounts.models import Project
from adapterhub.core.errors import Invalid
from registry.adapter_files.served_config import CONFIG
from registry.adapter_files.tensor_names import WEIGHTS

NAME = r"^[A-Za-z0-9][\w.-]{0,99}$"


def take_folder(name: str, project: Project, target: Path) -> None:
    """Copy PEFT's two files from `inbox/<project>/<name>` to the folder `target`.

    Raises Invalid if one is missing, or if a folder or file is a link or not a plain file.
    """
    place = settings.INBOX_DIR / project.slug
    try:
        with opened(place, os.O_DIRECTORY) as owner, opened(name, os.O_DIRECTORY, owner) as folder:
            for file in (WEIGHTS, CONFIG):
                copy_plain(file, folder, target / file)
    except OSError as error:
        raise Invalid(
            f"This project's inbox has no folder {name!r} with {WEIGHTS} and {CONFIG}, or it is a link.",
            field="folder",
        ) from error


@contextmanager
def opened(path: Path | str, flags: int = 0, below: int | None = None) -> Iterator[int]:
    """Open a path read-only and yield its file descriptor, closed afterwards; `flags` are further ones of `os.open`.

    `below` is the descriptor of the folder that a relative path starts from. Raises OSError for a link, which could
    lead out of the inbox. Opening does not block on a pipe.
    """
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | flags, dir_fd=below)
    try:
        yield number
    finally:
        os.close(number)


def copy_plain(name: str, folder: int, target: Path) -> None:
    """Copy the plain file `name` of the open folder to `target`. Raises OSError for a link or another kind of file."""
    with opened(name, 0, folder) as number:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(f"{name} is not a plain file")
        with os.fdopen(os.dup(number), "rb") as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 2**20)
