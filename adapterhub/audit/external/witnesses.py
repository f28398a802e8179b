"""Witnesses of the audit trail: places in other hands that keep the signed checkpoints, or a time-stamp of them.

A checkpoint is witnessed after it is committed, and until each witness has it: one that is away holds nobody up.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
from botocore.exceptions import BotoCoreError, ClientError
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from adapterhub.artifacts import S3Store, open_store
from adapterhub.audit import checkpoint_store
from adapterhub.audit.external import timestamps
from adapterhub.audit.installation_key import trusted_keys
from adapterhub.audit.models import Checkpoint, Receipt, chain_name
from adapterhub.audit.verifier import Checkpoint as SignedHead
from adapterhub.audit.verifier import checkpoint_in
from adapterhub.core.tenancy import Tenant, row_of

log = logging.getLogger(__name__)
BATCH = 200
TIMEOUT_S = 10
TABLE = """CREATE TABLE IF NOT EXISTS adapterhub_checkpoint (
    path text PRIMARY KEY, document bytea NOT NULL, at timestamptz NOT NULL DEFAULT now())"""


class Away(Exception):
    """Raised if a witness does not answer or refuses; the message says which one and why."""


class Witness(ABC):
    """A place outside this installation that keeps checkpoints; `name`, in receipts and verdicts, holds no secret."""

    name: str

    @abstractmethod
    def keep(self, point: Checkpoint) -> bytes:
        """Store a checkpoint; return the witness' receipt, or b"" if it gives none. Storing it again changes nothing.

        Raises Away if the witness does not answer or refuses.
        """

    @abstractmethod
    def documents(self, project: Tenant | None, newest: int) -> Iterator[bytes]:
        """Yield the newest signed checkpoints of a chain that the witness holds, `newest` at most, the oldest first.

        Raises Away if the witness does not answer or refuses.
        """

    def heads(self, project: Tenant | None, newest: int) -> list[SignedHead]:
        """Return the newest checkpoints of a chain that the witness holds, `newest` at most, the oldest first.

        Their signatures are verified. Raises Away if it does not answer, and Unreadable for one that no trusted key
        signed.
        """
        keys = trusted_keys()
        return [checkpoint_in(document, keys, self.name) for document in self.documents(project, newest)]


class FolderWitness(Witness):
    """A folder, such as a mounted share that accepts only new files."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, f"file:{root}"

    def keep(self, point: Checkpoint) -> bytes:
        """Write a new read-only file, unless it exists; return b"". Raises Away if it cannot be written."""
        try:
            checkpoint_store.keep_in_folder(self.root / point.path, bytes(point.document))
        except FileExistsError:
            return b""
        except OSError as error:
            raise Away(f"{self.name}: {error.strerror}") from None
        return b""

    def documents(self, project: Tenant | None, newest: int) -> Iterator[bytes]:
        """Yield the contents of the chain's `newest` last files, oldest first. Raises Away if the folder is missing."""
        if not self.root.is_dir():
            raise Away(f"{self.name}: no such folder")
        files = sorted((self.root / chain_name(project)).glob("*.json"))
        yield from (path.read_bytes() for path in files[-newest:])


class BucketWitness(Witness):
    """A bucket of S3; objects are locked if it has Object Lock."""

    def __init__(self, address: str) -> None:
        self._address, self.name = address, address

    def keep(self, point: Checkpoint) -> bytes:
        """Put a new object, unless it exists; return b"". Raises Away if the bucket does not answer or refuses."""
        try:
            checkpoint_store.keep_in_bucket(self._store(), point.path, bytes(point.document))
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise Away(f"{self.name}: {error}") from None
        except BotoCoreError as error:
            raise Away(f"{self.name}: {error}") from None
        return b""

    def documents(self, project: Tenant | None, newest: int) -> Iterator[bytes]:
        """Yield the contents of the chain's `newest` last objects, oldest first.

        Raises Away if the bucket does not answer or refuses.
        """
        store = self._store()
        prefix = "/".join(part for part in (store.prefix, chain_name(project)) if part) + "/"
        try:
            pages = store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix=prefix)
            keys = sorted(item["Key"] for page in pages for item in page.get("Contents", []))
            for key in keys[-newest:]:
                yield store.client.get_object(Bucket=store.bucket, Key=key)["Body"].read()
        except (ClientError, BotoCoreError) as error:
            raise Away(f"{self.name}: {error}") from None

    def _store(self) -> S3Store:
        store = open_store(self._address, endpoint_url=settings.S3_ENDPOINT_URL, addressing=settings.S3_ADDRESSING)
        assert isinstance(store, S3Store)  # noqa: S101 - by the address
        return store


class PostgresWitness(Witness):
    """A second Postgres database, whose role may insert and read; the table is created if it is missing."""

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        self._address, self.name = address, f"postgres:{parts.hostname or ''}{unquote(parts.path)}"

    def keep(self, point: Checkpoint) -> bytes:
        """Insert a row, unless it exists, into a table made at the first call; return b"".

        Raises Away if the database does not answer or refuses.
        """
        try:
            with psycopg.connect(self._address, connect_timeout=TIMEOUT_S) as connection:
                if connection.execute("SELECT to_regclass('adapterhub_checkpoint')").fetchone() == (None,):
                    connection.execute(TABLE)
                connection.execute(
                    "INSERT INTO adapterhub_checkpoint (path, document) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                    [point.path, bytes(point.document)],
                )
        except psycopg.Error as error:
            raise Away(f"{self.name}: {error}") from None
        return b""

    def documents(self, project: Tenant | None, newest: int) -> Iterator[bytes]:
        """Yield the documents of the chain's `newest` last rows, oldest first.

        Raises Away if the database does not answer or refuses.
        """
        query = "SELECT document FROM adapterhub_checkpoint WHERE starts_with(path, %s) ORDER BY path DESC LIMIT %s"
        try:
            with psycopg.connect(self._address, connect_timeout=TIMEOUT_S) as connection:
                rows = connection.execute(query, [f"{chain_name(project)}/", newest]).fetchall()
        except psycopg.Error as error:
            raise Away(f"{self.name}: {error}") from None
        yield from (bytes(row[0]) for row in reversed(rows))


class TimestampWitness(Witness):
    """A time-stamping authority (RFC 3161): it signs the checkpoint's hash with its time, and stores nothing."""

    def __init__(self, address: str) -> None:
        self._address = f"https://{address.removeprefix('tsa://')}"
        self.name = f"tsa:{urlsplit(self._address).hostname}"

    def keep(self, point: Checkpoint) -> bytes:
        """Return the authority's signed token for the checkpoint. Raises Away if it gives no valid one."""
        try:
            return timestamps.stamp(self._address, bytes(point.document))
        except timestamps.NoTimestamp as error:
            raise Away(f"{self.name}: {error}") from None

    def documents(self, project: Tenant | None, newest: int) -> Iterator[bytes]:
        """Yield those of the chain's `newest` time-stamped checkpoints whose time-stamp is valid, the oldest first.

        The time-stamps are read from the database, which can lose one but cannot forge one.
        """
        receipts = Receipt.objects.filter(witness=self.name, checkpoint__project=row_of(project)).select_related(
            "checkpoint"
        )
        for receipt in reversed(list(receipts.select_related("checkpoint").order_by("-checkpoint")[:newest])):
            document = bytes(receipt.checkpoint.document)
            if timestamps.holds(bytes(receipt.content), document):
                yield document


KINDS = {
    "file": lambda address: FolderWitness(Path(urlsplit(address).path)),
    "s3": BucketWitness,
    "postgres": PostgresWitness,
    "postgresql": PostgresWitness,
    "tsa": TimestampWitness,
}


def configured() -> list[Witness]:
    """Return the witnesses of ADAPTERHUB_AUDIT_WITNESSES. Raises ImproperlyConfigured for a URL of another scheme."""
    return [witness_at(address) for address in settings.AUDIT_WITNESSES]


def witness_at(address: str) -> Witness:
    """Return the witness at an address, a URL whose scheme is one of KINDS, such as `s3://bucket/prefix`.

    Raises ImproperlyConfigured for another scheme.
    """
    kind = KINDS.get(urlsplit(address).scheme)
    if kind is None:
        known = ", ".join(f"{name}://" for name in KINDS)
        raise ImproperlyConfigured(f"ADAPTERHUB_AUDIT_WITNESSES: {address[:20]!r}... must begin with one of {known}.")
    return kind(address)


def witness_all() -> int:
    """Give each witness the oldest checkpoints that it lacks, up to BATCH each; return how many were taken in all."""
    return sum(given_to(witness) for witness in configured())


def given_to(witness: Witness) -> int:
    """Give a witness the oldest checkpoints that it lacks, up to BATCH, and return how many it took.

    A receipt is stored for each. If it is away, that is logged, and the next call gives it the rest.
    """
    waiting = Checkpoint.objects.exclude(receipts__witness=witness.name).order_by("pk")[:BATCH]
    taken = 0
    try:
        for point in waiting:
            content = witness.keep(point)
            Receipt.objects.create(checkpoint=point, witness=witness.name, content=content)
            taken += 1
    except Away as error:
        log.error("The audit trail's witness is away: %s. Checkpoints wait for it.", error)
    return taken
