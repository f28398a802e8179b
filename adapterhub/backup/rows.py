"""Every row of the database as files of COPY, all of one moment, and back into a database of the same migrations.

No program of Postgres is needed and no role is named in the files: a newer server and other role names take them.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, cast

from django.core.management import call_command
from django.db import connections, transaction
from django.db.backends.utils import CursorWrapper
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.utils import OperationalError
from psycopg import sql

from adapterhub.backup.errors import BackupError

OWNER = "owner"
CHUNK = 1 << 20
# Rewritten by the migrations of a restore themselves.
APPLIED = "django_migrations"
LOCK_S = 10
TABLES = """
SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
AND NOT relispartition AND relname <> %s ORDER BY 1
"""
COLUMNS = """
SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
AND attgenerated = '' ORDER BY attnum
"""
SEQUENCES = "SELECT sequencename, last_value, start_value FROM pg_sequences WHERE schemaname = current_schema()"
# What must be there before a row: references that are checked at once.
REFERENCES = """
SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint
WHERE contype = 'f' AND connamespace = current_schema()::regnamespace AND NOT condeferrable AND conrelid <> confrelid
"""
TRIGGERS = """
SELECT tgrelid::regclass::text, tgname, tgenabled FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE relnamespace = current_schema()::regnamespace AND NOT tgisinternal
"""
# Partitions are written with their table, and its rows find their partitions, of which one takes what no other does.
OUT, IN = "COPY (SELECT {columns} FROM {table}) TO STDOUT", "COPY {table} ({columns}) FROM STDIN"
ENABLE = {"O": "ENABLE TRIGGER", "A": "ENABLE ALWAYS TRIGGER", "R": "ENABLE REPLICA TRIGGER", "D": "DISABLE TRIGGER"}
# Tables first: most sequences go with them. Names come quoted, those of functions with their arguments.
OWN_OBJECTS = """
SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, oid::regclass::text FROM pg_class
WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'S') AND relowner = current_user::regrole
UNION ALL
SELECT 'FUNCTION', oid::regprocedure::text FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proowner = current_user::regrole AND prokind = 'f'
ORDER BY kind DESC
"""

Migrations = list[tuple[str, str]]


@contextmanager
def one_moment() -> Iterator[CursorWrapper]:
    """Yield a cursor of the owner's role that sees the database as it is now, whatever others write meanwhile."""
    with transaction.atomic(using=OWNER), connections[OWNER].cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield cursor


def applied(cursor: CursorWrapper) -> Migrations:
    """Return the migrations that the database has, as (app, name)."""
    cursor.execute("SELECT app, name FROM django_migrations ORDER BY id")
    return cast(Migrations, cursor.fetchall())


def write(cursor: CursorWrapper, folder: Path) -> dict[str, dict[str, Any]]:
    """Write each table into `folder`; return by its name its columns and number of rows."""
    cursor.execute(TABLES, [APPLIED])
    return {table: write_table(cursor, table, folder / f"{table}.gz") for (table,) in cursor.fetchall()}


def write_table(cursor: CursorWrapper, table: str, path: Path) -> dict[str, Any]:
    """Write the rows of a table; return its columns and their number."""
    cursor.execute(COLUMNS, [f'"{table}"'])
    columns = [name for (name,) in cursor.fetchall()]
    with gzip.open(path, "wb", compresslevel=3) as stream, cursor.copy(copying(OUT, table, columns)) as rows:
        for data in rows:
            stream.write(data)
    return {"columns": columns, "rows": cursor.rowcount}


def sequences(cursor: CursorWrapper) -> dict[str, int | None]:
    """Return the last value of each sequence, None for one that was never asked."""
    cursor.execute(SEQUENCES)
    return {name: last for name, last, _ in cursor.fetchall()}


def copying(statement: str, table: str, columns: list[str]) -> sql.Composed:
    """Return the COPY statement with the table and its columns filled in."""
    names = sql.SQL(", ").join(map(sql.Identifier, columns))
    return sql.SQL(statement).format(table=sql.Identifier(table), columns=names)


def rebuild(migrations: Migrations) -> None:
    """Drop the product's tables and make those of the given migrations, without a row that anybody wrote.

    Raises BackupError when this release lacks a migration, or when other processes still use the tables.
    """
    graph = MigrationLoader(connections[OWNER], replace_migrations=False).graph
    if unknown := [f"{app}.{name}" for app, name in migrations if (app, name) not in graph.nodes]:
        raise BackupError(
            f"The backup is of a later release, which has {unknown[-1]}: restore it with that release or a later one."
        )
    drop_everything()
    children = {key: {child.key for child in graph.node_map[key].children} for key in migrations}
    leaves = [key for key in migrations if children[key].isdisjoint(migrations)]
    executor = MigrationExecutor(connections[OWNER])
    executor.migrate(leaves)


def drop_everything() -> None:
    """Drop tables, sequences and functions of the owner's role. Raises BackupError when others hold them."""
    try:
        with transaction.atomic(using=OWNER), connections[OWNER].cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = '{LOCK_S}s'")
            cursor.execute(OWN_OBJECTS)
            for kind, name in cursor.fetchall():
                cursor.execute(f"DROP {kind} IF EXISTS {name} CASCADE")
    except OperationalError as error:
        raise BackupError(
            "The database is in use: stop web, workers, beat, signer and control loop before a restore."
        ) from error


def read(folder: Path, tables: dict[str, dict[str, Any]], values: dict[str, int | None]) -> None:
    """Load the tables from their files, as they were written, in one transaction. Triggers do not fire meanwhile."""
    with transaction.atomic(using=OWNER), connections[OWNER].cursor() as cursor, silenced(cursor):
        names = sql.SQL(", ").join(map(sql.Identifier, tables))
        cursor.execute(sql.SQL("TRUNCATE {}").format(names))
        for table in in_order(cursor, tables):
            read_table(cursor, table, tables[table]["columns"], folder / f"{table}.gz")
        cursor.execute(SEQUENCES)
        for name, _, start in cursor.fetchall():
            last = values.get(name)
            cursor.execute("SELECT setval(%s::regclass, %s, %s)", [f'"{name}"', last or start, last is not None])
    with connections[OWNER].cursor() as cursor:
        cursor.execute("ANALYZE")


def read_table(cursor: CursorWrapper, table: str, columns: list[str], path: Path) -> None:
    """Load the rows of one table."""
    with gzip.open(path, "rb") as stream, cursor.copy(copying(IN, table, columns)) as rows:
        while data := stream.read(CHUNK):
            rows.write(data)


def in_order(cursor: CursorWrapper, tables: dict[str, dict[str, Any]]) -> list[str]:
    """Return the tables so that each comes after those that its rows refer to."""
    order: TopologicalSorter[str] = TopologicalSorter(dict.fromkeys(tables, ()))
    cursor.execute(REFERENCES)
    for table, referenced in cursor.fetchall():
        if {table, referenced} <= tables.keys():
            order.add(table, referenced)
    return list(order.static_order())


@contextmanager
def silenced(cursor: CursorWrapper) -> Iterator[None]:
    """Switch the product's own triggers off within the block, and each back to what it was.

    They would refuse what history holds, and send webhooks for it again.
    """
    cursor.execute(TRIGGERS)
    triggers = cast(list[tuple[str, str, str]], cursor.fetchall())
    for table, name, _ in triggers:
        cursor.execute(altering(table, "DISABLE TRIGGER", name))
    yield
    # A deferred check that is still due stands in the way of ALTER TABLE.
    cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
    for table, name, mode in triggers:
        cursor.execute(altering(table, ENABLE[mode], name))


def altering(table: str, verb: str, trigger: str) -> sql.Composed:
    """Return the ALTER TABLE statement about a trigger."""
    return sql.SQL("ALTER TABLE {} " + verb + " {}").format(sql.Identifier(table.strip('"')), sql.Identifier(trigger))


def migrate() -> None:
    """Bring the database to this release, with the rights of its roles."""
    call_command("migrate", verbosity=0)
