"""Content-addressed store of adapter weights, datasets and reports: a local folder or S3.

An artifact is a small folder of files. Its digest is the sha256 of its canonical manifest (RFC 8785 JSON of path,
size and sha256 of each file), so equal content has one place and nothing is ever overwritten.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import boto3
import rfc8785
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from adapterhub.core.counts import counted
from adapterhub.core.errors import Unavailable
from adapterhub.scratch_files import appear, flush, flush_entry, heal, locked, space_in, temporary_folder

DIGEST = re.compile(r"[0-9a-f]{64}")
CONNECT_S, ATTEMPTS = 5, 3


class ArtifactError(Exception):
    """Raised when an artifact is missing or its content does not match its digest."""


class StoreAway(Unavailable, OSError):
    """Raised when the store does not answer or answers with an error: its artifacts may exist and be intact or not."""

    code = "store_away"


@dataclass(frozen=True)
class File:
    """A file of an artifact: its relative POSIX path, size in bytes, and sha256 in hexadecimal."""

    path: str
    size: int
    sha256: str


def manifest_of(folder: Path, paths: Iterable[Path] | None = None) -> list[File]:
    """Return path, size and digest of a folder's files, or only of `paths` in it, sorted by relative path."""
    chosen = paths if paths is not None else (path for path in folder.rglob("*") if path.is_file())
    return sorted((file_of(folder, path) for path in chosen), key=lambda file: file.path)


def file_of(folder: Path, path: Path) -> File:
    """Return a file's path in the folder, size and digest."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(path.relative_to(folder).as_posix(), path.stat().st_size, digest)


def manifest_bytes(files: list[File]) -> bytes:
    """Return path, size and sha256 of the files, in the given order, as canonical JSON (RFC 8785)."""
    return rfc8785.dumps({"files": [asdict(file) for file in files]})


def digest_of(files: list[File]) -> str:
    """Return the sha256, in hexadecimal, of the files' manifest in canonical JSON.

    The digest depends on the order of `files`; `manifest_of` sorts them by path.
    """
    return hashlib.sha256(manifest_bytes(files)).hexdigest()


def verify(folder: Path, digest: str) -> None:
    """Raise ArtifactError unless the folder's files match the digest."""
    actual = digest_of(manifest_of(folder))
    if actual != digest:
        raise ArtifactError(f"{folder} holds {actual[:12]}, not {digest[:12]}: its files were changed.")


def is_intact(folder: Path, digest: str) -> bool:
    """Return True if the folder exists and its files match the digest."""
    return folder.exists() and digest_of(manifest_of(folder)) == digest


class ArtifactStore(Protocol):
    """The interface of a content-addressed store of folders. Implementations: FolderStore and S3Store.

    `fetch_dir` verifies what it copies; `opened` does not: the reader verifies.
    """

    def put_dir(self, folder: Path) -> str:
        """Store a copy of the folder, unless its content is there; return its digest.

        In both cases the artifact counts as put now.
        """

    def give_dir(self, folder: Path) -> str:
        """Store the folder, which may be moved instead of copied; return its digest."""

    def opened(self, digest: str) -> AbstractContextManager[Path]:
        """Return a context with a folder of the artifact's files, unverified. Raises ArtifactError if it is missing."""

    def fetch_dir(self, digest: str, target: Path) -> Path:
        """Copy the artifact to `target` in one step, unless an intact copy is there; verify it and return `target`.

        A damaged copy there is replaced. Raises ArtifactError if the artifact is missing or damaged.
        """

    def has(self, digest: str) -> bool:
        """Return True if the artifact is stored."""

    def stored(self) -> Iterator[tuple[str, datetime]]:
        """Yield every artifact's digest with the time at which it was last put."""

    def drop(self, digest: str, before: datetime) -> bool:
        """Delete an artifact and return True; if it was put again since `before`, return False."""

    def hold(self, digest: str) -> None:
        """Protect an artifact from being overwritten or deleted, where the store can."""


def open_store(
    location: str, *, endpoint_url: str | None = None, addressing: str = "", scratch: Path | None = None
) -> ArtifactStore:
    """Open the store at `s3://bucket/prefix` or in a folder. `addressing` of an S3 bucket is `path` or `virtual`.

    Artifacts of a bucket are downloaded to a folder in `scratch`, by default the system's folder for temporary files.
    """
    if location.startswith("s3://"):
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        return S3Store(bucket, prefix, endpoint_url, addressing, scratch)
    return FolderStore(Path(location))


class FolderStore:
    """A store in a local folder; an artifact lies in root/<first 2 hex digits>/<digest>/."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def place(self, digest: str) -> Path:
        """Return the artifact's folder."""
        return self.root / digest[:2] / digest

    def has(self, digest: str) -> bool:
        """Return True if the artifact's folder exists."""
        return self.place(digest).is_dir()

    def put_dir(self, folder: Path) -> str:
        """Copy the folder into the store, unless its content is there; return its digest."""
        return self.take_in(folder, copy_in_one_step)

    def give_dir(self, folder: Path) -> str:
        """Move the folder into the store, unless its content is there, in which case it stays; return its digest."""
        return self.take_in(folder, move_in_one_step)

    def take_in(self, folder: Path, bring: Callable[[Path, Path], None]) -> str:
        """Call `bring(folder, place)` to put the folder into the store, unless its content is there; return its digest.

        In both cases the artifact counts as put now. Raises OutOfSpace if the disk is full.
        """
        digest = digest_of(manifest_of(folder))
        place = self.place(digest)
        if not self.has(digest):
            with space_in(self.root):
                place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                bring(folder, place)
        # A repeated put renews the time: garbage collection must not delete the artifact before its row exists.
        os.utime(place)
        return digest

    @contextmanager
    def opened(self, digest: str) -> Iterator[Path]:
        """Yield the artifact's own folder in the store. Raises ArtifactError if it is missing."""
        if not self.has(digest):
            raise ArtifactError(f"Artifact {digest[:12]} is not in the store {self.root}.")
        yield self.place(digest)

    def stored(self) -> Iterator[tuple[str, datetime]]:
        """Yield every artifact's digest with the time at which it was last put."""
        for place in self.root.glob("[0-9a-f][0-9a-f]/*"):
            if DIGEST.fullmatch(place.name):
                yield place.name, datetime.fromtimestamp(place.stat().st_mtime, UTC)

    def drop(self, digest: str, before: datetime) -> bool:
        """Delete the artifact unless it was put again since `before`; return True if deleted.

        It is renamed first, so that a put at the same time creates a new copy instead of using the one being deleted.
        """
        place = self.place(digest)
        condemned = place.with_name(f".garbage-{digest}")
        place.rename(condemned)
        if datetime.fromtimestamp(condemned.stat().st_mtime, UTC) >= before:
            appear(condemned, place)
            return False
        shutil.rmtree(condemned)
        return True

    def hold(self, digest: str) -> None:
        """No effect: a folder cannot be locked, so its bytes are verified at every read."""

    def fetch_dir(self, digest: str, target: Path) -> Path:
        """Copy the artifact to `target`, in one step, unless an intact copy is there; return `target`.

        Raises ArtifactError if it is missing or damaged in the store.
        """
        if not self.has(digest):
            raise ArtifactError(f"Artifact {digest[:12]} is not in the store {self.root}.")
        if not is_intact(target, digest):
            copy_in_one_step(self.place(digest), target, digest)
        return target


def copy_in_one_step(source: Path, target: Path, digest: str = "") -> None:
    """Copy a folder atomically: readers see all of it or nothing, also after a loss of power.

    With a digest, verify the copy before it appears; it then takes the place of a damaged one.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-copy-"))
    try:
        with locked(partial):
            shutil.copytree(source, partial, dirs_exist_ok=True)
            if digest:
                verify(partial, digest)
            flush(partial)
            if digest and target.exists():
                heal(partial, target)
            else:
                appear(partial, target)
            flush_entry(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_in_one_step(source: Path, target: Path) -> None:
    """Rename the folder to `target`; copy it in one step when the target is on another disk."""
    if os.stat(source).st_dev == os.stat(target.parent).st_dev:
        flush(source)
        appear(source, target)
        flush_entry(target.parent)
    else:
        copy_in_one_step(source, target)


class S3Store:
    """A store in an S3 bucket; an artifact lies under prefix/<digest>/, and its manifest.json is written last."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        endpoint_url: str | None,
        addressing: str = "",
        scratch: Path | None = None,
    ) -> None:
        self.bucket = bucket
        self.scratch = scratch
        self.prefix = prefix.strip("/")
        config = Config(
            s3={"addressing_style": addressing or ("path" if endpoint_url else "auto")},
            signature_version="s3v4",
            response_checksum_validation="when_required",
            # The control loop uses the store too: one that drops packets must not block it for minutes.
            connect_timeout=CONNECT_S,
            retries={"mode": "standard", "max_attempts": ATTEMPTS},
        )
        self.client: Any = boto3.client("s3", endpoint_url=endpoint_url, config=config)

    def key(self, digest: str, path: str) -> str:
        """Return the key of an artifact's file, or without a path that of the artifact."""
        return "/".join(part for part in (self.prefix, digest, path) if part)

    def has(self, digest: str) -> bool:
        """Return True if the artifact is complete: its manifest, which is written last, is stored.

        Raises botocore's errors if the bucket does not answer.
        """
        try:
            self.client.head_object(Bucket=self.bucket, Key=self.key(digest, "manifest.json"))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return False
            raise
        return True

    def put_dir(self, folder: Path) -> str:
        """Upload the folder unless its content is stored already; return its digest.

        The manifest is written in both cases, which renews the time at which the artifact was last put. Raises
        StoreAway if the bucket does not answer.
        """
        files = manifest_of(folder)
        digest = digest_of(files)
        with self.answering():
            for file in files if not self.has(digest) else []:
                self.client.upload_file(str(folder / file.path), self.bucket, self.key(digest, file.path))
            manifest = self.key(digest, "manifest.json")
            self.client.put_object(Bucket=self.bucket, Key=manifest, Body=manifest_bytes(files))
        return digest

    def give_dir(self, folder: Path) -> str:
        """Upload the folder as `put_dir` does; it stays where it is."""
        return self.put_dir(folder)

    @contextmanager
    def opened(self, digest: str) -> Iterator[Path]:
        """Yield a temporary folder with the artifact's files, unverified.

        Raises ArtifactError if it is missing, and StoreAway if the bucket does not answer.
        """
        with temporary_folder(self.scratch or Path(tempfile.gettempdir())) as folder:
            with self.answering():
                if not self.has(digest):
                    raise ArtifactError(f"Artifact {digest[:12]} is not in bucket {self.bucket}.")
                self.download(digest, folder)
            yield folder

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Convert S3 errors in the block to StoreAway."""
        try:
            yield
        except (BotoCoreError, Boto3Error, ClientError) as error:
            reason = f"The bucket {self.bucket} does not answer ({code_of(error)})"
            raise StoreAway(f"{reason}: nothing was changed, try again.") from error

    def fetch_dir(self, digest: str, target: Path) -> Path:
        """Download the artifact to `target` and verify it, unless an intact copy is there; return `target`.

        Raises ArtifactError if it is missing or damaged, and StoreAway if the bucket does not answer.
        """
        if is_intact(target, digest):
            return target
        with self.opened(digest) as folder:
            copy_in_one_step(folder, target, digest)
        return target

    def download(self, digest: str, folder: Path) -> None:
        """Download every file of the artifact but its manifest."""
        prefix = self.key(digest, "")
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        for item in (item for page in pages for item in page.get("Contents", [])):
            path = item["Key"].removeprefix(prefix).lstrip("/")
            if path == "manifest.json":
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            self.client.download_file(self.bucket, item["Key"], str(folder / path))

    def stored(self) -> Iterator[tuple[str, datetime]]:
        """Yield every artifact's digest with the time at which its manifest was last written."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
        for item in (item for page in pages for item in page.get("Contents", [])):
            *_, digest, name = "/".join(("", item["Key"])).split("/")
            if name == "manifest.json" and DIGEST.fullmatch(digest):
                yield digest, item["LastModified"]

    def drop(self, digest: str, before: datetime) -> bool:
        """Delete the artifact, its manifest first, unless it was put again since `before`; return True if deleted."""
        head = self.client.head_object(Bucket=self.bucket, Key=self.key(digest, "manifest.json"))
        # The time in the header has whole seconds.
        if head["LastModified"] >= before.replace(microsecond=0):
            return False
        for key in [self.key(digest, "manifest.json"), *self.keys(digest)]:
            self.client.delete_object(Bucket=self.bucket, Key=key)
        return True

    def keys(self, digest: str) -> list[str]:
        """Return the keys of all objects of the artifact."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self.key(digest, "") + "/"
        )
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def hold(self, digest: str) -> None:
        """Put a legal hold on the artifact's objects, so that nobody can overwrite or delete them.

        No effect in a bucket without Object Lock.
        """
        try:
            self.client.get_object_lock_configuration(Bucket=self.bucket)
        except ClientError:
            return
        for key in self.keys(digest):
            self.client.put_object_legal_hold(Bucket=self.bucket, Key=key, LegalHold={"Status": "ON"})

    def download_urls(self, digest: str, seconds: int) -> dict[str, str]:
        """Return a link to each file of the artifact by its name, valid for `seconds` without credentials.

        Raises StoreAway if the bucket does not answer.
        """
        with self.answering():
            files = {key.rsplit("/", 1)[1]: key for key in self.keys(digest)}
        return {name: self.presigned("get_object", key, seconds) for name, key in files.items()}

    def upload_url(self, path: str, seconds: int) -> str:
        """Return a URL that accepts an upload to `path` below `incoming/` for `seconds`; `take` then moves the file."""
        return self.presigned("put_object", self.incoming(path), seconds)

    def incoming(self, path: str) -> str:
        """Return the key of a direct upload that is not yet checked."""
        return "/".join(part for part in (self.prefix, "incoming", path) if part)

    def presigned(self, verb: str, key: str, seconds: int) -> str:
        """Return a URL that allows one action on one key for `seconds`, without credentials.

        `verb` is the action's name in boto3, such as `get_object`.
        """
        url: str = self.client.generate_presigned_url(
            verb, Params={"Bucket": self.bucket, "Key": key}, ExpiresIn=seconds
        )
        return url

    def take(self, path: str, target: Path, most_bytes: int) -> None:
        """Download the upload at `path` to the file `target` and delete it from the bucket.

        Raises ArtifactError if it is missing or over `most_bytes`, and StoreAway if the bucket does not answer.
        """
        key = self.incoming(path)
        with self.answering():
            try:
                size = self.client.head_object(Bucket=self.bucket, Key=key)["ContentLength"]
                if size > most_bytes:
                    raise ArtifactError(f"{path} has {counted(size, 'byte')}; at most {most_bytes} are taken.")
                self.client.download_file(self.bucket, key, str(target))
            except ClientError as error:
                raise ArtifactError(f"{path} was not uploaded.") from error
            self.client.delete_object(Bucket=self.bucket, Key=key)


def code_of(error: Exception) -> str:
    """Return the S3 error code, which is safe to show, or the exception's class name.

    A failed upload carries the S3 error as its context, beside others of the same folder as the context of another one.
    """
    reason: BaseException | None = error
    while reason:
        if isinstance(reason, ClientError):
            return str(reason.response["Error"]["Code"])
        reason = reason.__cause__ or reason.__context__
    return type(error).__name__
