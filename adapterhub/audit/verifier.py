r"""Verify an exported audit trail without AdapterHub: standard library and `cryptography`, no database, no Django.

    python verifier.py EXPORT --checkpoints DIR --public-key FILE

prints `{"ok", "project", "sequence", "fault", "witnessed", "witnessed_at", "by_chain_alone"}`.
Exit 0: intact, 1: broken, 2: something cannot be read. EXPORT is the
JSONL file, or the folder of a bundle: then its signed manifest is proved too, and `file` names the first file that is
not the one that was signed for, with `sequence` null where the chain itself holds. The faults:

edited   the bytes of the event are not those that its hash was made of, or it claims another place in the chain;
         the bytes of `file` are not those that were signed for
gap      an event is missing, or stands in another order; `file` is missing
tail     the trail ends before the sequence of a signed checkpoint
rehash   the trail holds in itself, but is not the one whose head was signed; `sequence` is the checkpoint's
time     the event is more than 5 minutes older than one before it, or than the checkpoint before it, or younger than
         the checkpoint or time-stamp after it or than this moment; of reads and refusals, sealed later, only these

The hash of an event is sha256("adapterhub.audit.v1\n" | hash before it | its canonical JSON, RFC 8785), 32 bytes; the
first follows 32 zero bytes. Outside proof reaches up to `witnessed`, the sequence of the newest checkpoint in DIR,
signed at `witnessed_at`: the `by_chain_alone` events after it are held by the chain, and by nothing outside.

With `--tsa-certificates FILE`, and the package rfc3161-client, the time-stamps of RFC 3161 are verified that a bundle
has beside its checkpoints (`*.tsr`, each for the file before `.json.` in its name): authorities whose roots FILE holds
prove the events up to `stamped`, which existed at `stamped_at` by their clock, whoever has the installation's key.
`stamps_refused` counts tokens that prove nothing: of other authorities, or for another checkpoint. The verdict has
these three with the option alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificates

DOMAIN = b"adapterhub.audit.v1\n"
CHECKPOINT_DOMAIN = b"adapterhub.audit.checkpoint.v1\n"
MANIFEST_DOMAIN = b"adapterhub.audit.manifest.v1\n"
ENDING = re.compile(rb',"sequence":(\d+),"tag":"[a-z_:]+"\}')
GENESIS = b"\0" * 32
# Clocks of processes differ, and a change waits for its chain. Reads and refusals are sealed when a worker runs.
TOLERANCE = timedelta(minutes=5)
SEALED_LATER = "request"
INSTALLATION = "(installation)"


class Unreadable(Exception):
    """Raised for an input that cannot be used; the message names it and the fix."""


@dataclass(frozen=True)
class Link:
    """An event in a chain: its sequence, its canonical bytes (RFC 8785) and both hashes (32 bytes each)."""

    sequence: int
    canonical: bytes
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True)
class Fault:
    """An event at which verification fails, and the `kind` of the fault.

    It is `edited` (not what was hashed), `gap` (missing or out of order), `tail` (the trail ends before a checkpoint),
    `rehash` (not what a checkpoint signed) or `time` (impossible beside other times).
    """

    sequence: int
    kind: str


@dataclass(frozen=True)
class Checkpoint:
    """The signed head of a chain: at `at` (ISO 8601) the project had `sequence` events and this head (32 bytes).

    `digest` is the sha256 (hex) of its own signed text, and `previous` that of the checkpoint before it, "" for the
    first, so that a missing one is noticed.
    """

    project: str
    sequence: int
    head: bytes
    at: str
    previous: str
    digest: str


@dataclass(frozen=True)
class Moment:
    """The time of an event. Reads and refusals are sealed later, so theirs may be before that of earlier events."""

    sequence: int
    at: datetime
    is_sealed_later: bool


def time_faults(moments: Iterable[Moment], points: Iterable[Checkpoint], until: datetime) -> Iterator[Fault]:
    """Yield a fault for each event whose time is wrong by more than TOLERANCE.

    It must not be before that of an earlier event or checkpoint, unless the event is sealed later, and not after that
    of a checkpoint that covers it, or `until`.
    """
    ordered = sorted(points, key=lambda point: point.sequence)
    signed = [(point.sequence, datetime.fromisoformat(point.at)) for point in ordered]
    place, earliest = 0, datetime(1970, 1, 1, tzinfo=UTC)
    # The latest moment of an event is that of the first checkpoint which covers it: the earliest of all from there on.
    latest = [until]
    for _, at in reversed(signed):
        latest.append(min(latest[-1], at))
    latest.reverse()
    for moment in moments:
        while place < len(signed) and signed[place][0] < moment.sequence:
            earliest = max(earliest, signed[place][1])
            place += 1
        is_early = moment.at < earliest - TOLERANCE and not moment.is_sealed_later
        if is_early or moment.at > latest[place] + TOLERANCE:
            yield Fault(moment.sequence, "time")
        if not moment.is_sealed_later:
            earliest = max(earliest, moment.at)


def moment_of(link: Link) -> Moment | None:
    """Return the time in the hashed bytes of an event; None if they cannot be read as an event."""
    try:
        content = json.loads(link.canonical)
        return Moment(link.sequence, datetime.fromisoformat(content["at"]), content["object"]["type"] == SEALED_LATER)
    except (ValueError, KeyError, TypeError):
        return None


def link_hash(prev_hash: bytes, canonical: bytes) -> bytes:
    """Return the hash of an event: sha256(domain | prev_hash | canonical bytes)."""
    return hashlib.sha256(DOMAIN + prev_hash + canonical).digest()


def faults(links: Iterable[Link], checkpoints: Iterable[Checkpoint] = ()) -> Iterator[Fault]:
    """Verify a chain in the given order; yield each fault.

    `gap`: an event is missing; `edited`: its bytes or hashes do not fit; `rehash`: it is not the one whose hash a
    checkpoint signed; `tail`: the chain ends before a checkpoint.
    """
    signed: dict[int, set[bytes]] = {}
    for point in checkpoints:
        signed.setdefault(point.sequence, set()).add(point.head)
    expected, prev_hash = 1, GENESIS
    for link in links:
        if link.sequence != expected:
            yield Fault(expected, "gap")
        elif not holds(link, prev_hash):
            yield Fault(link.sequence, "edited")
        elif link.sequence in signed and signed[link.sequence] != {link.hash}:
            yield Fault(link.sequence, "rehash")
        expected, prev_hash = link.sequence + 1, link.hash
    if max(signed, default=0) >= expected:
        yield Fault(expected, "tail")


def holds(link: Link, prev_hash: bytes) -> bool:
    """Return True if the link continues `prev_hash`, has the right hash, and its bytes name its sequence."""
    return (
        link.prev_hash == prev_hash
        and link.hash == link_hash(prev_hash, link.canonical)
        and sequence_in(link.canonical) == link.sequence
    )


def sequence_in(canonical: bytes) -> int | None:
    """Return the sequence in the hashed bytes of an event; None if they cannot be read as an event."""
    # The keys are sorted: unless the event is forged, this is its end, and no string or inner object can match.
    if end := ENDING.fullmatch(canonical, canonical.rfind(b',"sequence":')):
        return int(end[1])
    try:
        content = json.loads(canonical)
    except ValueError:
        return None
    sequence = content.get("sequence") if isinstance(content, dict) else None
    return sequence if isinstance(sequence, int) else None


def read_export(path: Path) -> list[tuple[str, Link]]:
    """Return the events of a JSONL export, each with the project that it names.

    Raises Unreadable if the file or a line cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return [read_line(number, line) for number, line in enumerate(stream, 1) if line.strip()]
    except OSError as error:
        raise Unreadable(f"EXPORT {path} cannot be read ({error.strerror}): name a file of audit/export/.") from error


def read_line(number: int, line: bytes) -> tuple[str, Link]:
    """Parse an exported line to its project and link. Raises Unreadable, with `number`, for any other line."""
    try:
        row = json.loads(line)
        canonical = row["event"].encode()
        link = Link(int(row["sequence"]), canonical, bytes.fromhex(row["prev"]), bytes.fromhex(row["hash"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"EXPORT line {number} is not an exported event: export the trail again.") from error
    return project_in(canonical), link


def project_in(canonical: bytes) -> str:
    """Return the project in the hashed bytes of an event: its slug, or INSTALLATION for an event of no project.

    It is "" if the bytes cannot be read as an event.
    """
    try:
        return str(json.loads(canonical).get("project") or INSTALLATION)
    except (ValueError, AttributeError):
        return ""


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key in PEM. Raises Unreadable for any other file."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Unreadable(
            f"--public-key {path} is not a public key in PEM format: name the installation's key file."
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise Unreadable(f"--public-key {path} is not an Ed25519 key: name the installation's key file.")
    return key


def read_checkpoints(folder: Path, key: Ed25519PublicKey) -> list[Checkpoint]:
    """Return every checkpoint below the folder, oldest first, with its signature verified.

    Raises Unreadable if it is no folder, or if one is no checkpoint or was not signed with the key.
    """
    if not folder.is_dir():
        raise Unreadable(f"--checkpoints {folder} is not a folder: name the folder of the signed checkpoints.")
    checkpoints = [read_checkpoint(path, key) for path in sorted(folder.rglob("*.json"))]
    return sorted(checkpoints, key=lambda point: (point.at, point.sequence))


def read_checkpoint(path: Path, key: Ed25519PublicKey) -> Checkpoint:
    """Return the checkpoint in the file. Raises Unreadable if it is none or was not signed with the key."""
    try:
        outer = json.loads(path.read_bytes())
        signed, signature = outer["signed"].encode(), bytes.fromhex(outer["signature"])
        key.verify(signature, CHECKPOINT_DOMAIN + signed)
        return checkpoint_of(signed)
    except InvalidSignature as error:
        raise Unreadable(
            f"--checkpoints {path.name} was not signed with this key: use a copy stored outside the installation."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"--checkpoints {path.name} is not a checkpoint: remove it, or use an intact copy.") from error


def checkpoint_in(document: bytes, keys: Iterable[Ed25519PublicKey], place: str) -> Checkpoint:
    """Return the checkpoint in a signed document, after verifying that one of the keys signed it.

    Raises Unreadable, which begins with `place`, where the document lies, if none did or it is no checkpoint.
    """
    try:
        outer = json.loads(document)
        signed, signature = outer["signed"].encode(), bytes.fromhex(outer["signature"])
        point = checkpoint_of(signed)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"{place} has an object that is not a checkpoint: remove it.") from error
    for key in keys:
        try:
            key.verify(signature, CHECKPOINT_DOMAIN + signed)
        except InvalidSignature:
            continue
        return point
    raise Unreadable(f"{place} holds a checkpoint of {point.at} that no key of this installation signed: remove it.")


def checkpoint_of(signed: bytes) -> Checkpoint:
    """Return the checkpoint in its signed bytes, without verifying.

    Raises ValueError, KeyError or TypeError for other bytes.
    """
    content = json.loads(signed)
    return Checkpoint(
        project=content["project"] or INSTALLATION,
        sequence=int(content["sequence"]),
        head=bytes.fromhex(content["head"]),
        at=content["at"],
        previous=content["previous"],
        digest=hashlib.sha256(signed).hexdigest(),
    )


@dataclass(frozen=True)
class Manifest:
    """The signed manifest of a bundle: its project, and the size (bytes) and sha256 (hex) of each of its files."""

    project: str
    files: dict[str, tuple[int, str]]


def read_manifest(path: Path, key: Ed25519PublicKey) -> Manifest:
    """Return the manifest in the file. Raises Unreadable if it is none or was not signed with the key."""
    try:
        outer = json.loads(path.read_bytes())
        signed = outer["signed"].encode()
        key.verify(bytes.fromhex(outer["signature"]), MANIFEST_DOMAIN + signed)
        content = json.loads(signed)
        files = {name: (int(file["size"]), str(file["sha256"])) for name, file in content["files"].items()}
        return Manifest(content["project"] or INSTALLATION, files)
    except InvalidSignature as error:
        raise Unreadable(f"EXPORT {path} was not signed with this key: download the bundle again.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(
            f"EXPORT {path} is not a manifest: name the folder of a bundle, or its events.jsonl."
        ) from error


def broken_file(folder: Path, manifest: Manifest) -> tuple[str, str] | None:
    """Return the name of the first file that differs from the manifest, with `gap` if it is missing and else `edited`.

    None if all match. `folder` is the bundle's.
    """
    for name, (size, digest) in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            return name, "gap"
        with path.open("rb") as stream:
            if path.stat().st_size != size or hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                return name, "edited"
    return None


@dataclass(frozen=True)
class Stamp:
    """An authority's time-stamp of a checkpoint: at the time `at` the project had `sequence` events."""

    project: str
    sequence: int
    at: datetime


def read_stamps(folder: Path, key: Ed25519PublicKey, roots: Path) -> list[Stamp | None]:
    """Return the time-stamps beside the checkpoints; None in place of each that is not valid.

    `roots` is a PEM file of the authorities' root certificates. Raises Unreadable without the package rfc3161-client,
    without certificates in `roots`, and for a checkpoint of a stamp that cannot be read or was not signed with the key.
    """
    try:
        from rfc3161_client import VerificationError, VerifierBuilder, decode_timestamp_response
    except ImportError:
        raise Unreadable("--tsa-certificates needs the package rfc3161-client: install it with pip.") from None
    try:
        certificates = load_pem_x509_certificates(roots.read_bytes())
    except (OSError, ValueError) as error:
        raise Unreadable(f"--tsa-certificates {roots} holds no certificates in PEM: name the authorities'.") from error
    trusted = VerifierBuilder(roots=certificates).build()

    def read(path: Path) -> Stamp | None:
        document = path.with_name(path.name.rpartition(".json.")[0] + ".json")
        point = read_checkpoint(document, key)
        try:
            response = decode_timestamp_response(path.read_bytes())
            trusted.verify_message(response, document.read_bytes())
        except (OSError, ValueError, VerificationError):
            return None
        return Stamp(point.project, point.sequence, response.tst_info.gen_time)

    return [read(path) for path in sorted(folder.rglob("*.tsr"))]


def stamped(verdict_on_trail: dict[str, object], stamps: list[Stamp | None]) -> dict[str, object]:
    """Return the verdict with `stamped`, `stamped_at` and `stamps_refused` added.

    They are the newest event that a time-stamp of its project covers (0 if none does), that stamp's time (None without
    one), and the number of invalid stamps, each a None in `stamps`.
    """
    own = [stamp for stamp in stamps if stamp and stamp.project == verdict_on_trail["project"]]
    newest = max(own, key=lambda stamp: stamp.sequence, default=None)
    return {
        **verdict_on_trail,
        "stamped": newest.sequence if newest else 0,
        "stamped_at": newest.at.isoformat() if newest else None,
        "stamps_refused": stamps.count(None),
    }


def require_complete(points: list[Checkpoint]) -> None:
    """Raise Unreadable if a checkpoint, after the first, follows one that is missing."""
    known = {point.digest for point in points}
    for point in points[1:]:
        if point.previous not in known:
            raise Unreadable(f"--checkpoints: the one before {point.at} is missing: use a complete copy.")


def project_of(events: list[tuple[str, Link]], points: list[Checkpoint], wanted: str) -> str:
    """Return the project of the export.

    It is `wanted`, else the one that most events name, else the only one with checkpoints. Raises Unreadable if the
    export is empty and not exactly one project has checkpoints.
    """
    named = [name for name, _ in events if name]
    if wanted or named:
        return wanted or max(set(named), key=named.count)
    signed = {point.project for point in points}
    if len(signed) != 1:
        raise Unreadable("EXPORT has no events: name the project it belongs to with --project.")
    return signed.pop()


def verdict(
    export: Path, folder: Path, public_key: Path, wanted: str = "", roots: Path | None = None
) -> dict[str, object]:
    """Verify the export, a file or a bundle's folder; return {ok, project, sequence, fault, ...}.

    `folder` holds the checkpoints, `wanted` is the project's slug ("" to take it from the export), and `roots` a PEM
    file of time-stamping authorities, None to leave time-stamps out. `sequence` is that of the first fault, or the last
    one of an intact trail. For a bundle, `file` names a broken file; if the chain itself holds, `sequence` is None
    then. Raises Unreadable for an input that cannot be used.
    """
    key = read_public_key(public_key)
    stamps = read_stamps(folder, key, roots) if roots else None
    if not export.is_dir():
        return of_trail(export, read_checkpoints(folder, key), wanted, stamps)
    manifest = read_manifest(export / "manifest.json", key)
    wanted = wanted or manifest.project
    trail_verdict = of_trail(export / "events.jsonl", read_checkpoints(folder, key), wanted, stamps)
    broken = broken_file(export, manifest)
    if broken is None:
        return trail_verdict
    name, fault = broken
    # A fault of the chain is more precise than that its file differs.
    own = {} if trail_verdict["fault"] else {"ok": False, "sequence": None, "fault": fault}
    return {**trail_verdict, **own, "file": name}


def of_trail(
    export: Path, points: list[Checkpoint], wanted: str, stamps: list[Stamp | None] | None
) -> dict[str, object]:
    """Return the verdict on the events alone, with the first fault; with `stamps`, also what these prove.

    `export` is the JSONL file, and `wanted` as in `project_of`. Raises Unreadable if the file cannot be read, a
    checkpoint is missing, or none is for the export.
    """
    events = read_export(export)
    project = project_of(events, points, wanted)
    points = [point for point in points if point.project == project]
    if not points:
        raise Unreadable(
            f"--checkpoints holds none of {project!r}: without one, a truncated or rewritten trail looks intact."
        )
    require_complete(points)
    links = [link for _, link in events]
    fault = next(faults(links, points), None)
    stranger = next((Fault(link.sequence, "edited") for name, link in events if name != project), None)
    moments = [moment for moment in map(moment_of, links) if moment]
    late = next(time_faults(moments, points, datetime.now(UTC)), None) or next(
        late_for(moments, stamps or [], project), None
    )
    newest = max(points, key=lambda point: point.sequence)
    on_trail = answer(project, fault or stranger or late, len(events), newest)
    return on_trail if stamps is None else stamped(on_trail, stamps)


def late_for(moments: Iterable[Moment], stamps: list[Stamp | None], project: str) -> Iterator[Fault]:
    """Yield a fault for each event whose time is, by more than TOLERANCE, after a time-stamp that covers it."""
    own = [stamp for stamp in stamps if stamp and stamp.project == project]
    for moment in moments:
        if any(moment.sequence <= stamp.sequence and moment.at > stamp.at + TOLERANCE for stamp in own):
            yield Fault(moment.sequence, "time")


def answer(project: str, fault: Fault | None, last: int, newest: Checkpoint) -> dict[str, object]:
    """Return the verdict as JSON: `ok`, `project`, `sequence`, `fault`, and how far the checkpoint `newest` is proof.

    `sequence` is that of the fault or, without one, `last`, the number of events.
    """
    return {
        "ok": fault is None,
        "project": project,
        "sequence": fault.sequence if fault else last,
        "fault": fault.kind if fault else None,
        "witnessed": newest.sequence,
        "witnessed_at": newest.at,
        "by_chain_alone": max(0, last - newest.sequence),
    }


def main(arguments: list[str] | None = None) -> int:
    """Verify the named export and print the verdict.

    Returns the exit status: 0, 1 for a fault, 2 for unreadable input.
    """
    parser = argparse.ArgumentParser(description="Verify an exported audit trail against its signed checkpoints.")
    parser.add_argument("export", type=Path, metavar="EXPORT", help="JSONL of audit/export/, or a bundle's folder")
    parser.add_argument("--checkpoints", type=Path, required=True, metavar="DIR", help="folder of signed checkpoints")
    parser.add_argument("--public-key", type=Path, required=True, metavar="FILE", help="Ed25519 public key, PEM")
    parser.add_argument("--project", default="", help="slug; needed for an empty export alone")
    parser.add_argument("--tsa-certificates", type=Path, metavar="FILE", help="roots of time-stamping authorities, PEM")
    options = parser.parse_args(arguments)
    try:
        outcome = verdict(
            options.export, options.checkpoints, options.public_key, options.project, options.tsa_certificates
        )
    except Unreadable as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(outcome) + "\n")
    return 0 if outcome["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
