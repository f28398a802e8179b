"""Datasets in a bucket or on a hub: which addresses a project may name, and how their bytes are read.

Operators list what may be read with the installation's own keys (`ADAPTERHUB_DATASET_SOURCES`), for all projects or for
one; otherwise one team could read another's bucket by its address. The artifact store itself is never a source.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings

from adapterhub.artifacts import S3Store
from adapterhub.core.errors import Invalid
from adapterhub.jobs.child import Child

MOST_BYTES = 20 * 2**30
CHUNK = 2**20
# Below the time after which a check counts as lost.
HUB_S = 1200
# A hub that accepts the connection and never answers.
ANSWER_S = 30.0
# Between two looks at what a child has written.
WATCH_S = 2
FIELD = "source"
HUB = re.compile(r"hf://\w[\w.-]*/\w[\w.-]*")
BUCKET = re.compile(r"s3://[a-z0-9.-]{3,63}/\S.*")


@dataclass(frozen=True)
class Source:
    """A dataset's address, `s3://bucket/key` or `hf://owner/name`, and the part of it that is read.

    `revision` is a hub's branch, tag or commit, or a version of an object in a bucket; `config` and `split` exist only
    on a hub. Each is "" for the default.
    """

    url: str
    revision: str = ""
    config: str = ""
    split: str = ""

    @property
    def is_hub(self) -> bool:
        """Return True for a dataset of a hub."""
        return self.url.startswith("hf://")

    @property
    def repository(self) -> str:
        """Return the `owner/name` of a hub's dataset."""
        return self.url.removeprefix("hf://")

    @property
    def filename(self) -> str:
        """Return the name of the file in which the bytes are stored; its suffix gives the format."""
        return f"{self.repository.rpartition('/')[2]}.jsonl" if self.is_hub else PurePosixPath(self.url).name

    def require_known(self) -> None:
        """Check the form of the address and that its kind has the choices made. Raises Invalid."""
        if not (HUB if self.is_hub else BUCKET).fullmatch(self.url):
            raise Invalid(
                f"{self.url!r} is not a source: name s3://bucket/key or hf://owner/name.",
                field=FIELD,
                code="bad_source",
            )
        if not self.is_hub and {"", ".", ".."} & set(self.url.removeprefix("s3://").split("/")):
            # Some stores and proxies read such a key as another one, which no operator allowed.
            raise Invalid(f"{self.url!r} has an empty part, '.' or '..'.", field=FIELD, code="bad_source")
        for name in ("config", "split"):
            if getattr(self, name) and not self.is_hub:
                raise Invalid(f"{name} is a choice of a hub's dataset: leave it out.", field=name, code="bad_source")

    def require_allowed(self, project: str) -> None:
        """Check that operators let the project read the address, and that it is not in the artifact store.

        `project` is the project's slug. The operators' entries are `s3://bucket/prefix`, `hf://owner` or a whole
        address, and may begin with `project=`. Raises Invalid, also as `require_known` does.
        """
        self.require_known()
        store = settings.ARTIFACT_STORE
        if store.startswith("s3://") and is_below(self.url, store):
            raise Invalid(
                "The artifact store cannot be a source of datasets: name another bucket.",
                field=FIELD,
                code="source_not_allowed",
            )
        if not any(is_below(self.url, prefix) for prefix in prefixes_of(project)):
            raise Invalid(
                f"{self.url} is not allowed here: ask an operator to add it to ADAPTERHUB_DATASET_SOURCES.",
                field=FIELD,
                code="source_not_allowed",
            )


@dataclass(frozen=True)
class Origin:
    """The bytes that were read: `sha256`, `size` in bytes, and `revision`.

    `revision` is a commit, or an object's version or entity tag.
    """

    revision: str
    sha256: str
    size: int

    def facts(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return asdict(self)


def prefixes_of(project: str) -> Iterator[str]:
    """Yield the addresses below which operators let the project of this slug read."""
    for entry in settings.DATASET_SOURCES:
        owner, is_for_one, prefix = entry.partition("=")
        if not is_for_one or "://" in owner:
            yield entry
        elif owner == project:
            yield prefix


def is_below(url: str, prefix: str) -> bool:
    """Return True if the address is the prefix, or lies below it in the sense of a path."""
    return url == prefix or url.startswith(prefix if prefix.endswith("/") else f"{prefix}/")


def brought_from_bucket(source: Source, store: S3Store, key: str, target: Path) -> Origin:
    """Copy the object `key` to the file `target` and return its origin.

    It is the version `source.revision` or, without one, the newest. Raises Invalid if it cannot be read or is over
    MOST_BYTES.
    """
    named = {"VersionId": source.revision} if source.revision else {}
    digest, size = hashlib.sha256(), 0
    try:
        answer = store.client.get_object(Bucket=store.bucket, Key=key, **named)
        if answer["ContentLength"] > MOST_BYTES:
            raise too_large()
        with target.open("wb") as file:
            for chunk in answer["Body"].iter_chunks(CHUNK):
                size += file.write(chunk)
                digest.update(chunk)
    except (ClientError, BotoCoreError, OSError) as error:
        raise not_given(source, str(error)) from None
    version = answer.get("VersionId") or answer.get("ETag", "").strip('"')
    return Origin(source.revision or version, digest.hexdigest(), size)


def brought_from_hub(source: Source, target: Path, folder: Path) -> Origin:
    """Write the rows of a hub's dataset at one commit to `target` as JSON lines, in a child process; return the origin.

    `folder` is for the child's files. Raises Invalid if the hub or the child fails, or its files exceed MOST_BYTES.
    """
    commit = commit_of(source)
    request = json.dumps(
        {"repository": source.repository, "revision": commit, "config": source.config, "split": source.split}
    )
    events = folder / "events.jsonl"
    arguments = ["training.datasets.hub_process", request, str(target), str(folder / "cache"), str(events)]
    child = Child(arguments, events, folder / "log.txt")
    try:
        status = ended_within(child, folder)
    finally:
        child.kill()
    answer = next(child.new_events(), None) if status == 0 else None
    if answer is None:
        raise not_given(source, "the program that asks it ended early; see the worker's log")
    if "fault" in answer:
        raise Invalid(answer["fault"], field=FIELD, code="source_not_read")
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Origin(commit, digest, target.stat().st_size)


def ended_within(child: Child, folder: Path) -> int | None:
    """Wait for the child up to HUB_S seconds; return its exit status, or None if it still runs.

    Raises Invalid if its files in the folder exceed MOST_BYTES: what a hub sends compressed may unfold to any size.
    """
    give_up_at = time.monotonic() + HUB_S
    while True:
        status = child.wait(WATCH_S)
        if size_of(folder) > MOST_BYTES:
            raise too_large()
        if status is not None or time.monotonic() > give_up_at:
            return status


def size_of(folder: Path) -> int:
    """Return the total bytes of the files below a folder; files may vanish meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.lstat().st_size
    return size


def commit_of(source: Source) -> str:
    """Return the hub's commit of the source's revision, the newest one if it names none.

    Raises Invalid if the hub does not answer or has no such dataset or revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().dataset_info(source.repository, revision=source.revision or None, timeout=ANSWER_S).sha)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise not_given(source, str(error).splitlines()[0]) from None


def not_given(source: Source, why: str) -> Invalid:
    """Return, without raising it, the error of a source that cannot be read."""
    return Invalid(f"{source.url} cannot be read: {why}", field=FIELD, code="source_not_read")


def too_large() -> Invalid:
    """Return, without raising it, the error of an object over the size limit."""
    return Invalid(f"The object is over {MOST_BYTES >> 30} GB: split it.", field=FIELD, code="source_too_large")
