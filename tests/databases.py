"""Databases of tests: copies of the migrated template, each emptied after its test and used again if that is enough."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

import psycopg
from django.db import OperationalError, connections
from psycopg import sql

from adapterhub import environment as env
from adapterhub.embedded.layout import database_admin_url

TEMPLATE = "adapterhub"
# A copy has the rows of the template's catalog with their transactions, until a statement changes the schema.
SCHEMA = """
    SELECT md5(string_agg(entry, ',' ORDER BY entry)) FROM (
        SELECT 'relation' || oid || ' ' || xmin::text FROM pg_class WHERE oid >= 16384
        UNION ALL SELECT 'column' || attrelid || ' ' || attnum || ' ' || xmin::text FROM pg_attribute
            WHERE attrelid >= 16384
        UNION ALL SELECT 'default' || oid || ' ' || xmin::text FROM pg_attrdef
        UNION ALL SELECT 'constraint' || oid || ' ' || xmin::text FROM pg_constraint WHERE oid >= 16384
        UNION ALL SELECT 'trigger' || trigger::text FROM pg_trigger AS trigger
        UNION ALL SELECT 'function' || oid || ' ' || xmin::text FROM pg_proc WHERE oid >= 16384
        UNION ALL SELECT 'namespace' || oid || ' ' || xmin::text FROM pg_namespace
        UNION ALL SELECT 'setting of role ' || setrole FROM pg_db_role_setting
            WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AS catalog (entry)
"""
TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
ROWS = "SELECT {name}, md5(string_agg(ctid::text || xmin::text, ',' ORDER BY ctid)) FROM {table} HAVING count(*) > 0"
ALWAYS = "SELECT tgname FROM pg_trigger WHERE tgrelid = quote_ident(%s)::regclass AND tgenabled = 'A'"
SEQUENCES = "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public'"
END_SESSIONS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = %s AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class State:
    """A digest of a database's schema, one of the rows of each table that has any, and where its sequences stand."""

    schema: str
    rows: dict[str, str]
    sequences: dict[str, int | None]

    @classmethod
    def of(cls, session: psycopg.Connection) -> State:
        tables = [name for (name,) in session.execute(TABLES)]
        parts = [sql.SQL(ROWS).format(name=sql.Literal(name), table=sql.Identifier(name)) for name in tables]
        rows: dict[str, str] = dict(session.execute(sql.SQL(" UNION ALL ").join(parts)).fetchall())
        [(schema,)] = session.execute(SCHEMA).fetchall()
        return cls(schema, rows, dict(session.execute(SEQUENCES).fetchall()))

    def restore(self, session: psycopg.Connection) -> bool:
        """Delete what other tables hold and set the sequences back; return whether the database has this state then."""
        now = State.of(session)
        # Rows go without the triggers that keep history and ask for order.
        undone: list[sql.Composable] = [sql.SQL("SET session_replication_role = replica")]
        for table in now.rows.keys() - self.rows.keys():
            undone += _delete_rows(table, [name for (name,) in session.execute(ALWAYS, [table])])
        undone += [_set_sequence(*item) for item in self.sequences.items() - now.sequences.items()]
        session.execute(sql.SQL("; ").join(undone))
        return State.of(session) == self


def _delete_rows(table: str, always: list[str]) -> list[sql.Composed]:
    """Return the statements that empty a table; `always` are its triggers that a replica runs, too."""
    alter = sql.SQL("ALTER TABLE {} {} TRIGGER {}")
    name, triggers = sql.Identifier(table), [sql.Identifier(trigger) for trigger in always]
    return [
        *(alter.format(name, sql.SQL("DISABLE"), trigger) for trigger in triggers),
        sql.SQL("DELETE FROM {}").format(name),
        *(alter.format(name, sql.SQL("ENABLE ALWAYS"), trigger) for trigger in triggers),
    ]


def _set_sequence(name: str, last_value: int | None) -> sql.Composed:
    """Return the statement after which a sequence goes on behind this value, or begins anew without one."""
    value = sql.Literal(last_value or 1), sql.Literal(last_value is not None)
    return sql.SQL("SELECT setval({}, {}, {})").format(sql.Literal(f'"{name}"'), *value)


class Copies:
    """The copies of the template in this process that wait for a test, and the state that they are in."""

    spare: list[str] = []
    state: State | None = None

    @classmethod
    def take(cls, name: str) -> None:
        """Provide a copy under this name. A new name each time: a process that a test left behind finds it no more."""
        if cls.spare:
            owner_executes(f'ALTER DATABASE "{cls.spare.pop()}" RENAME TO "{name}"')
            return
        copy_template(name)
        if cls.state is None:
            with administrator(name) as session:
                cls.state = State.of(session)

    @classmethod
    def give_back(cls, name: str) -> None:
        """Keep the copy for another test, or drop it if more than new rows changed in it."""
        assert cls.state is not None
        with administrator(name) as session:
            session.execute(END_SESSIONS, [name])
            restored = cls.state.restore(session)
        if restored:
            cls.spare.append(name)
        else:
            owner_executes(f'DROP DATABASE "{name}"')


@contextmanager
def own_copy() -> Iterator[str]:
    """Use a copy of the migrated template."""
    with used(new_name()) as name:
        Copies.take(name)
        yield name
    Copies.give_back(name)


@contextmanager
def own_database(create: Callable[[str], None]) -> Iterator[str]:
    """Use a database of its own, which `create` makes by its name, and drop it at the end."""
    with used(new_name()) as name:
        create(name)
        yield name
    # WITH (FORCE) would fail on an autovacuum worker; a plain drop ends that one.
    with administrator("postgres") as session:
        session.execute(END_SESSIONS, [name])
    owner_executes(f'DROP DATABASE "{name}"')


@contextmanager
def used(name: str) -> Iterator[str]:
    """Let Django's connections lead to this database."""
    before = connections.settings["default"]["NAME"]
    use_database(name)
    yield name
    connections.close_all()
    use_database(before)


def new_name() -> str:
    return f"adapterhub_fresh_{os.urandom(4).hex()}"


def use_database(name: str) -> None:
    for alias in ("default", "owner"):
        connections[alias].close()
        connections.settings[alias]["NAME"] = name
        connections[alias].settings_dict["NAME"] = name


def copy_template(name: str) -> None:
    """On a busy machine an autovacuum worker stays in the template for longer than the 5 s that Postgres waits."""
    for _ in range(10):
        with suppress(OperationalError):
            return owner_executes(f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}" STRATEGY FILE_COPY')
    return owner_executes(f'CREATE DATABASE "{name}" TEMPLATE "{TEMPLATE}" STRATEGY FILE_COPY')


def owner_executes(statement: str) -> None:
    """Run a statement as the owner from the maintenance database, so that nothing is connected to the template."""
    owner = connections.create_connection("owner")
    owner.settings_dict = {**owner.settings_dict, "NAME": "postgres"}
    with closing(owner), owner.cursor() as cursor:
        cursor.execute(statement)


def administrator(name: str) -> psycopg.Connection:
    """Connect to a database as the server's superuser, with none of the limits that a test set for it."""
    return psycopg.connect(database_admin_url(env.home(), name), autocommit=True, options="-c statement_timeout=0")
