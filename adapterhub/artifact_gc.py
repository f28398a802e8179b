"""Garbage collection of artifacts that no row refers to, left by a crash between storing the bytes and the row.

A reference is any sha256 in any text or JSON column of any table, the audit trail included: when in doubt, keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from django.apps import apps
from django.db import connections, models
from django.utils.timezone import now
from psycopg import sql

from adapterhub.artifacts import ArtifactStore

TEXTS = (models.CharField, models.TextField, models.JSONField)


def collect(store: ArtifactStore, grace: timedelta, *, dry_run: bool) -> Iterator[str]:
    """Delete unreferenced artifacts that were not stored within `grace`, or with `dry_run` only find them.

    Yields their digests.
    """
    before = now() - grace
    old = [digest for digest, at in store.stored() if at < before]
    # Read after the store, so that a row that was added in the meantime counts.
    known = referenced() if old else set()
    for digest in old:
        if digest not in known and (dry_run or store.drop(digest, before)):
            yield digest


def referenced(using: str = "default") -> set[str]:
    """Return each sha256, in hexadecimal, that occurs in a text of any row of the database, over that connection."""
    digests: set[str] = set()
    for model in apps.get_models():
        columns = [str(field.column) for field in model._meta.concrete_fields if isinstance(field, TEXTS)]
        if columns and model._meta.managed:
            digests |= digests_in(model._meta.db_table, columns, using)
    return digests


DIGESTS = sql.SQL(
    "SELECT DISTINCT found[1] FROM {table}, regexp_matches(concat_ws(' ', {texts}), '[0-9a-f]{{64}}', 'g') found"
)


def digests_in(table: str, columns: list[str], using: str) -> set[str]:
    """Return each sha256, in hexadecimal, that occurs in the columns of a table."""
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(column)) for column in columns)
    with connections[using].cursor() as cursor:
        cursor.execute(DIGESTS.format(table=sql.Identifier(table), texts=texts))
        return {row[0] for row in cursor.fetchall()}
