"""Locks in the database that one process holds at a time, and that end with its connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection


@contextmanager
def session_lock(name: str, key: int = 0) -> Iterator[bool]:
    """Try once to take the lock of this name and key, until the block ends; yield True if it was free, else False."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtext(%s), %s)", [name, key])
        has_lock = bool(cursor.fetchone()[0])
        try:
            yield has_lock
        finally:
            if has_lock:
                cursor.execute("SELECT pg_advisory_unlock(hashtext(%s), %s)", [name, key])
