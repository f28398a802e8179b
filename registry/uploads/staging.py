"""Files that arrive one by one or in parts before a version is made of them: received, continued, taken, dropped."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import IO

from django.db import transaction
from django.db.models import QuerySet, Sum
from django.utils.timezone import now

from adapterhub.accounts.models import Project
from adapterhub.artifacts import StoreAway
from adapterhub.core.actor import Actor
from adapterhub.core.counts import counted
from adapterhub.core.errors import Conflict
from registry.models import StagedFile
from registry.uploads.staged_parts import Counted, parts

MOST_BYTES, MOST_FILES = 16 * 2**30, 1000
log = logging.getLogger(__name__)


def replace(project: Project, path: str, source: IO[bytes], *, by: Actor) -> StagedFile:
    """Store a whole file under the path and return it; one that was there before is deleted first.

    Raises Conflict or TooLarge if the project's staged files leave no room, OutOfSpace if the disk is full, and
    StoreAway if the store does not answer; the former file is not restored then.
    """
    drop(StagedFile.objects.filter(project=project, path=path))
    return append(project, path, 0, source, by=by)


def append(project: Project, path: str, offset: int, source: IO[bytes], *, by: Actor) -> StagedFile:
    """Store the next part of a file, whose first byte is the file's byte `offset`, and return the file.

    The file is created if there is none. Bytes are stored before the row says so: a part that broke off leaves the file
    as it was. Raises Conflict if the file has not `offset` bytes or was dropped meanwhile, and for want of room or of
    the store what `replace` raises.
    """
    stream = Counted(source, room_of(project))
    file, _ = StagedFile.objects.get_or_create(project=project, path=path, defaults={"created_by": by.user})
    require_offset(file, offset)
    name = parts().put(file.pk.hex, stream)
    with transaction.atomic():
        rows = StagedFile.objects.select_for_update().filter(pk=file.pk)
        file = rows.first() or file
        require_offset(file, offset)
        if not rows.update(
            parts=[*file.parts, [name, stream.size]], size_bytes=offset + stream.size, received_at=now()
        ):
            raise Conflict("The file was dropped while it arrived: send it again.", code="upload_dropped")
    file.refresh_from_db()
    return file


def require_offset(file: StagedFile, offset: int) -> None:
    """Raise Conflict unless the next byte of the file is that at `offset`."""
    if file.size_bytes != offset:
        raise Conflict(
            f"{counted(file.size_bytes, 'byte has', 'bytes have')} arrived, so that the next part begins "
            f"there, not at {offset}.",
            code="wrong_offset",
        )


def room_of(project: Project) -> int:
    """Return the number of bytes that the project may still stage, MOST_BYTES in all.

    Raises Conflict if there are none left, or if it has MOST_FILES staged files.
    """
    files = StagedFile.objects.filter(project=project)
    room = MOST_BYTES - (files.aggregate(Sum("size_bytes"))["size_bytes__sum"] or 0)
    if room <= 0 or files.count() >= MOST_FILES:
        raise Conflict(
            f"{project} has {MOST_FILES} files or {MOST_BYTES >> 30} GB waiting for their versions: publish them, or "
            "wait a day until they are dropped.",
            code="staging_full",
        )
    return room


def take(file: StagedFile, target: Path) -> Path:
    """Write the file's bytes to `target` and return it.

    Raises Conflict if they are no longer there as a whole, StoreAway if the store does not answer, and OutOfSpace.
    """
    try:
        parts().join(file.pk.hex, [name for name, _ in file.parts], target)
    except FileNotFoundError:
        target.unlink(missing_ok=True)
    if not target.exists() or target.stat().st_size != file.size_bytes:
        raise Conflict(f"{file} is no longer there as a whole: send it again.", code="upload_dropped")
    return target


def drop(files: QuerySet[StagedFile]) -> int:
    """Delete the files, their bytes first, and return how many were deleted.

    A file whose store does not answer is logged and left.
    """
    dropped = 0
    for file in files:
        try:
            parts().drop(file.pk.hex)
        except StoreAway as error:
            log.warning("The parts of a staged file were not dropped: %s", error)
            continue
        dropped += StagedFile.objects.filter(pk=file.pk).delete()[0]
    return dropped
