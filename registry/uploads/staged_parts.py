"""Bytes of staged files: each part is a file or an object of its own, named by the server."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Protocol, cast

from adapterhub.artifacts import FolderStore, S3Store
from adapterhub.core.counts import counted
from adapterhub.core.errors import TooLarge
from adapterhub.scratch_files import flush_entry, space_in
from adapterhub.workspace import store

BLOCK = 2**20


class Counted:
    """A stream that counts the bytes read from it. Raises TooLarge when they are over the limit."""

    def __init__(self, source: IO[bytes], most: int) -> None:
        self._source, self._most, self.size = source, most, 0

    def read(self, count: int = -1) -> bytes:
        """Return up to `count` bytes, as a file does: all that are left for -1.

        Raises TooLarge once more bytes than the limit have been read.
        """
        block = self._source.read(count)
        self.size += len(block)
        if self.size > self._most:
            raise TooLarge(
                f"There is room for {counted(self._most, 'more byte')}: publish or wait, then send it again."
            )
        return block


class Parts(Protocol):
    """A place for the parts of staged files; `key` is the hexadecimal id of the file."""

    def put(self, key: str, source: Counted) -> str:
        """Store a part and return its name.

        Raises TooLarge as the source does, and OutOfSpace or StoreAway if the place cannot take it.
        """

    def join(self, key: str, names: Iterable[str], target: Path) -> None:
        """Write the parts of these names, one after the other, to the new file `target`.

        Raises FileNotFoundError for a missing one.
        """

    def drop(self, key: str) -> None:
        """Delete all parts of the file."""


class FolderParts:
    """Parts below `incoming/` in the folder of the store."""

    def __init__(self, root: Path) -> None:
        self._root = root / "incoming"

    def put(self, key: str, source: Counted) -> str:
        """Store a part durably and return its name; a part that fails is deleted.

        Raises OutOfSpace, and TooLarge as the source does.
        """
        name, folder = uuid.uuid4().hex, self._root / key
        path = folder / name
        with space_in(self._root):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with path.open("xb") as sink:
                    while block := source.read(BLOCK):
                        sink.write(block)
                flush_entry(path)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        return name

    def join(self, key: str, names: Iterable[str], target: Path) -> None:
        """Write the parts, one after another, to `target`.

        Raises FileNotFoundError for a missing one, and OutOfSpace if the disk is full.
        """
        with space_in(target.parent), target.open("wb") as sink:
            for name in names:
                with (self._root / key / name).open("rb") as source:
                    shutil.copyfileobj(source, sink, BLOCK)

    def drop(self, key: str) -> None:
        """Delete the file's folder."""
        shutil.rmtree(self._root / key, ignore_errors=True)


class BucketParts:
    """Parts below `incoming/` in the bucket of the store."""

    def __init__(self, bucket: S3Store) -> None:
        self._bucket = bucket

    def put(self, key: str, source: Counted) -> str:
        """Upload a part and return its name. Raises StoreAway, and TooLarge as the source does."""
        name = uuid.uuid4().hex
        with self._bucket.answering():
            self._bucket.client.upload_fileobj(source, self._bucket.bucket, self._place(key, name))
        return name

    def join(self, key: str, names: Iterable[str], target: Path) -> None:
        """Download the parts, one after another, into `target`.

        Raises FileNotFoundError for a missing one, StoreAway if the bucket does not answer, and OutOfSpace if the disk
        is full.
        """
        with self._bucket.answering(), space_in(target.parent), target.open("wb") as sink:
            for name in names:
                # boto's own download into a file would begin each part at the file's first byte.
                try:
                    part = self._bucket.client.get_object(Bucket=self._bucket.bucket, Key=self._place(key, name))
                except self._bucket.client.exceptions.NoSuchKey:
                    raise FileNotFoundError(name) from None
                shutil.copyfileobj(part["Body"], sink, BLOCK)

    def drop(self, key: str) -> None:
        """Delete the file's objects. Raises StoreAway if the bucket does not answer."""
        client: Any = self._bucket.client
        with self._bucket.answering():
            pages = client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket.bucket, Prefix=self._place(key, "")
            )
            for item in [item for page in pages for item in page.get("Contents", [])]:
                client.delete_object(Bucket=self._bucket.bucket, Key=item["Key"])

    def _place(self, key: str, name: str) -> str:
        return self._bucket.incoming(f"{key}/{name}")


def parts() -> Parts:
    """Return the store of staged parts, in the bucket or the folder in which the installation's artifacts are."""
    artifacts = store()
    if isinstance(artifacts, S3Store):
        return BucketParts(artifacts)
    return FolderParts(cast(FolderStore, artifacts).root)
