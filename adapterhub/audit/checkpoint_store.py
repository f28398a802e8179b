"""Storage of checkpoints outside the database: below `checkpoints/` of the artifact store, never overwritten."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from django.conf import settings
from django.utils.timezone import now

from adapterhub.artifacts import FolderStore, S3Store, open_store

LOCKED_FOR = timedelta(days=3653)
# The answers of a bucket that has no Object Lock, and of stores that know none.
WITHOUT_LOCK = {
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_IMPLEMENTED,
}


def keep(path: str, data: bytes) -> None:
    """Write a new object at `path` below `checkpoints/` of the artifact store.

    In a bucket with Object Lock nobody can change or delete it for ten years. If it is there already, raises
    FileExistsError for a store in a folder and ClientError for a bucket, as for any other refusal of the bucket.
    """
    store = open_store(
        settings.ARTIFACT_STORE, endpoint_url=settings.S3_ENDPOINT_URL, addressing=settings.S3_ADDRESSING
    )
    if isinstance(store, S3Store):
        keep_in_bucket(store, f"checkpoints/{path}", data)
    elif isinstance(store, FolderStore):
        keep_in_folder(store.root / "checkpoints" / path, data)


def keep_in_folder(path: Path, data: bytes) -> None:
    """Write a new read-only file, with its folder if that is missing. Raises FileExistsError if the file is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as stream:
        stream.write(data)
    path.chmod(0o444)


def keep_in_bucket(store: S3Store, path: str, data: bytes) -> None:
    """Write a new object at `path` below the store's prefix, locked for ten years if the bucket has Object Lock.

    Raises ClientError if the object is there already, or if the bucket refuses for another reason.
    """
    key = "/".join(part for part in (store.prefix, path) if part)
    store.client.put_object(Bucket=store.bucket, Key=key, Body=data, IfNoneMatch="*", **lock_of(store))


def lock_of(store: S3Store) -> dict[str, Any]:
    """Return the arguments of `put_object` that lock an object for ten years; {} if the bucket has no Object Lock.

    Raises ClientError when the credentials may not read the bucket's lock configuration, or the store fails.
    """
    try:
        store.client.get_object_lock_configuration(Bucket=store.bucket)
    except ClientError as error:
        # Credentials that may not read the configuration, or a store that fails, must not turn the lock off unnoticed.
        if error.response["ResponseMetadata"]["HTTPStatusCode"] not in WITHOUT_LOCK:
            raise
        return {}
    return {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": now() + LOCKED_FOR}
