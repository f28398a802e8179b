"""A backup as a folder: `rows/`, `artifacts/`, `checkpoints/`, `keys.json`, and `backup.json`, which is written last.

`backup.json` names the sha256 of every other file but the artifacts, which have their digests as names.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from django.utils.timezone import now

from adapterhub.artifact_gc import referenced
from adapterhub.artifacts import ArtifactError, ArtifactStore, FolderStore, digest_of, manifest_of
from adapterhub.backup import keys, rows
from adapterhub.backup.errors import BackupError

CONTENTS = "backup.json"
KEYS = "keys.json"


@dataclass
class Report:
    """The result of a backup or a restore: numbers, and what is wrong with artifacts as sentences."""

    rows: int = 0
    artifacts: int = 0
    faults: list[str] = field(default_factory=list)


def make(folder: Path, store: ArtifactStore, passphrase: str, *, with_artifacts: bool) -> Report:
    """Write a backup of this installation, which may go on working, into a folder that does not exist yet.

    Without `with_artifacts` the bytes stay where they are, and only their list is written; without a passphrase the
    keys are left out. Raises BackupError for a folder that exists, and for a short passphrase.
    """
    sealed = keys.sealed(keys.current(), passphrase) if passphrase else b""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise BackupError(f"{folder} exists: name a folder that does not exist yet.") from error
    (folder / "rows").mkdir()
    with rows.one_moment() as cursor:
        migrations, values = rows.applied(cursor), rows.sequences(cursor)
        at = now()
        tables = rows.write(cursor, folder / "rows")
        # Bytes are stored before their row is written: what the rows name is there.
        named = referenced(rows.OWNER)
    stored = sorted(digest for digest, _ in store.stored() if digest in named)
    report = Report(rows=sum(table["rows"] for table in tables.values()))
    if with_artifacts:
        copy_artifacts(store, stored, folder, report)
    report.artifacts = len(stored)
    if sealed:
        (folder / KEYS).write_bytes(sealed)
    contents = {
        "format": 1,
        "made_at": at.isoformat(),
        "release": importlib.metadata.version("adapterhub"),
        "migrations": migrations,
        "tables": tables,
        "sequences": values,
        "artifacts": stored,
        "has_artifacts": with_artifacts,
        "files": {path.name: sha256_of(path) for path in files_of(folder)},
    }
    (folder / CONTENTS).write_text(json.dumps(contents, indent=1))
    return report


def copy_artifacts(store: ArtifactStore, digests: list[str], folder: Path, report: Report) -> None:
    """Copy the artifacts and the signed checkpoints of the trail; report those that cannot be copied as they were."""
    copies = FolderStore(folder / "artifacts")
    for digest in digests:
        try:
            with store.opened(digest) as source:
                copied = copies.put_dir(source)
        except ArtifactError as error:
            # Erased after the moment of the rows: an erasure is honoured in backups, too.
            if digest in referenced():
                report.faults.append(str(error))
            continue
        if copied != digest:
            report.faults.append(f"Artifact {digest[:12]} is damaged in the store: restore it from an earlier backup.")
    if isinstance(store, FolderStore) and (store.root / "checkpoints").is_dir():
        shutil.copytree(store.root / "checkpoints", folder / "checkpoints")


def contents_of(folder: Path) -> dict[str, Any]:
    """Return `backup.json` of a backup whose files are all as they were written. Raises BackupError."""
    try:
        contents: dict[str, Any] = json.loads((folder / CONTENTS).read_text())
    except (OSError, ValueError) as error:
        raise BackupError(f"{folder} is no complete backup: it has no readable {CONTENTS}.") from error
    if contents.get("format") != 1:
        raise BackupError(f"{folder} has a format that this release does not know: restore it with a later one.")
    for name, digest in contents["files"].items():
        path = folder / (name if name == KEYS else f"rows/{name}")
        if not path.is_file() or sha256_of(path) != digest:
            raise BackupError(f"{path} is missing or damaged: take another copy of the backup.")
    return contents


def put_back(folder: Path, store: ArtifactStore, passphrase: str) -> Report:
    """Make this installation what it was when the backup was made: keys, rows, artifacts; its processes are stopped.

    Nothing is changed when the backup is incomplete or the passphrase is another. Raises BackupError.
    """
    contents = contents_of(folder)
    sealed = folder / KEYS
    if sealed.exists() and not passphrase:
        raise BackupError("The backup has the installation's keys: give the passphrase that it was made with.")
    restored_keys = keys.opened(sealed.read_bytes(), passphrase) if sealed.exists() else {}
    rows.rebuild([(app, name) for app, name in contents["migrations"]])
    if restored_keys:
        keys.put_back(restored_keys)
    rows.read(folder / "rows", contents["tables"], contents["sequences"])
    rows.migrate()
    report = Report(rows=sum(table["rows"] for table in contents["tables"].values()))
    put_back_artifacts(FolderStore(folder / "artifacts"), store, contents["artifacts"], report)
    if isinstance(store, FolderStore) and (folder / "checkpoints").is_dir():
        put_back_checkpoints(folder / "checkpoints", store.root / "checkpoints")
    return report


def put_back_artifacts(copies: FolderStore, store: ArtifactStore, digests: list[str], report: Report) -> None:
    """Verify each artifact in the store, and replace what is missing or damaged there; report what no copy mends."""
    for digest in digests:
        if is_whole(store, digest):
            report.artifacts += 1
        elif is_whole(copies, digest):
            if store.has(digest):
                store.drop(digest, datetime.max.replace(tzinfo=now().tzinfo))
            with copies.opened(digest) as source:
                store.put_dir(source)
            report.artifacts += 1
        else:
            report.faults.append(f"Artifact {digest[:12]} is intact neither in the store nor in the backup.")


def is_whole(store: ArtifactStore, digest: str) -> bool:
    """Return True if the store has the artifact, with the bytes of its digest."""
    try:
        with store.opened(digest) as source:
            return digest_of(manifest_of(source)) == digest
    except ArtifactError:
        return False


def put_back_checkpoints(source: Path, target: Path) -> None:
    """Copy the signed checkpoints that are missing; those that are there stay, as nothing may overwrite them."""
    for path in source.rglob("*"):
        place = target / path.relative_to(source)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)


def files_of(folder: Path) -> list[Path]:
    """Return the files whose digests `backup.json` names."""
    return [*sorted((folder / "rows").iterdir()), *([folder / KEYS] if (folder / KEYS).exists() else [])]


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
