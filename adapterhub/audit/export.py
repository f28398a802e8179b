"""Export of the audit trail for outsiders: JSON lines, CSV, a signed manifest, checkpoints, public key."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZipFile

from django.utils.timezone import now

from adapterhub.audit.installation_key import public_key_pem, signed
from adapterhub.audit.models import AuditEvent, Checkpoint
from adapterhub.audit.verifier import MANIFEST_DOMAIN
from adapterhub.core.tenancy import Tenant, row_of
from adapterhub.workspace import scratch

COLUMNS = [
    "sequence",
    "at",
    "tag",
    "actor_name",
    "auth_method",
    "token_id",
    "object_type",
    "object_id",
    "object_name",
    "before",
    "after",
    "reason",
    "evidence",
    "request_id",
]
# A spreadsheet would run a cell that begins with one of these.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def export_lines(project: Tenant | None) -> Iterator[str]:
    """Yield a JSON line per event, in the order of the chain: the canonical text as it was hashed, and both hashes."""
    for event in AuditEvent.objects.of_chain(project).in_parts():
        link = event.as_link()
        line = {
            "sequence": link.sequence,
            "event": link.canonical.decode(),
            "prev": link.prev_hash.hex(),
            "hash": link.hash.hex(),
        }
        yield json.dumps(line) + "\n"


def csv_lines(project: Tenant | None) -> Iterator[str]:
    """Yield the names of the columns, then the events in the order of the chain, as CSV; no cell can be a formula."""
    yield csv_line(COLUMNS)
    for event in AuditEvent.objects.of_chain(project).in_parts():
        yield csv_line([cell(getattr(event, name)) for name in COLUMNS])


def csv_line(cells: list[str]) -> str:
    """Return the cells as one line of CSV."""
    line = io.StringIO()
    csv.writer(line).writerow(cells)
    return line.getvalue()


def cell(value: Any) -> str:
    """Return the value as text that a spreadsheet displays and never evaluates."""
    if isinstance(value, dict):
        value = json.dumps(value, sort_keys=True)
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


def write_bundle(project: Tenant | None, folder: Path) -> None:
    """Write everything that an outsider needs to verify the chain into the folder, which must be new.

    These are the events, as JSON lines and as CSV, checkpoints, time-stamps, the public key and a signed manifest.
    """
    folder.mkdir(parents=True)
    for name, lines in (("events.jsonl", export_lines(project)), ("events.csv", csv_lines(project))):
        with (folder / name).open("w", newline="") as stream:
            stream.writelines(lines)
    for point in Checkpoint.objects.filter(project=row_of(project)).select_related("project"):
        path = folder / "checkpoints" / point.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(point.document))
        for receipt in point.receipts.exclude(content=b""):
            path.with_name(f"{path.name}.{host_of(receipt.witness)}.tsr").write_bytes(bytes(receipt.content))
    (folder / "public-key.pem").write_bytes(public_key_pem())
    (folder / "manifest.json").write_bytes(signed(MANIFEST_DOMAIN, manifest_of(project, folder)))


def host_of(witness: str) -> str:
    """Return the host in a witness' name (`tsa:HOST`), with `_` for characters that a file's name may not have."""
    return re.sub(r"[^\w.-]", "_", witness.rpartition(":")[2])


def bundle_archive(project: Tenant | None, archive: IO[bytes]) -> None:
    """Write the bundle of `write_bundle` as a ZIP file into the open file `archive`; its paths begin with `bundle/`.

    Raises OutOfSpace if the work folder's disk is full.
    """
    with scratch() as folder, ZipFile(archive, "w", ZIP_DEFLATED) as packed:
        root = folder / "bundle"
        write_bundle(project, root)
        for path in sorted(root.rglob("*")):
            packed.write(path, path.relative_to(root.parent))


def manifest_of(project: Tenant | None, folder: Path) -> dict[str, Any]:
    """Return the manifest of a bundle: project, time, and the size (bytes) and sha256 of every file in the folder."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"project": project.slug if project else None, "at": now().isoformat(), "files": files}


def sha256_of(path: Path) -> str:
    """Return the sha256 hex of a file, which is not read into memory at once: a trail has no end."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
