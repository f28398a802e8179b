"""Database rights of the signer's role, and the schema in which trigger functions find tables."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connection, connections
from psycopg import sql

TABLE = "registry_signature"
HOLDERS = """
SELECT DISTINCT grantee FROM information_schema.role_table_grants
WHERE table_name = %s AND privilege_type = 'INSERT' AND grantee NOT IN (current_user, %s)
"""
TRIGGERS = """
SELECT current_schema(), proname FROM pg_proc
WHERE prorettype = 'trigger'::regtype AND pronamespace = current_schema()::regnamespace
AND proowner = current_user::regrole AND NOT coalesce('search_path' = ANY(SELECT split_part(setting, '=', 1)
    FROM unnest(proconfig) AS setting), false)
"""


def pin_triggers(using: str, **_: Any) -> None:
    """Pin the search path of all trigger functions to the product's schema, as the owner after each migration.

    A session's temporary tables would come first otherwise. No effect on other connections than `owner`.
    """
    if using != "owner":
        return
    with connections[using].cursor() as cursor:
        cursor.execute(TRIGGERS)
        for schema, function in cursor.fetchall():
            pin = sql.SQL("ALTER FUNCTION {}() SET search_path = {}, pg_temp")
            cursor.execute(pin.format(sql.Identifier(schema, function), sql.Identifier(schema)))


def divide_rights(using: str, **_: Any) -> None:
    """Give the right to insert signatures to the signer's role alone, after each migration with a signer process.

    Other roles do not get it back when the signer is removed. No effect on other connections than `owner`. Raises
    ImproperlyConfigured if Postgres lacks the role.
    """
    if using != "owner" or not settings.SIGNER_URL:
        return
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [settings.SIGNER_ROLE])
        if cursor.fetchone() is None:
            raise ImproperlyConfigured(
                f"ADAPTERHUB_SIGNER_URL is set, but Postgres has no role {settings.SIGNER_ROLE}: create it as "
                "docs/external-services.md says, or unset the variable."
            )
        reserve(cursor)


def reserve(cursor: Any) -> None:
    """Revoke the right to sign from every role but the owner, and grant it to the signer's."""
    cursor.execute(HOLDERS, [TABLE, settings.SIGNER_ROLE])
    for (role,) in cursor.fetchall():
        cursor.execute(statement("REVOKE INSERT ON {} FROM {}", role))
    cursor.execute(statement("GRANT INSERT ON {} TO {}", settings.SIGNER_ROLE))


def statement(text: str, role: str) -> sql.Composed:
    """Return the SQL statement with the table of signatures and the role filled in."""
    return sql.SQL(text).format(sql.Identifier(TABLE), sql.Identifier(role))


def may_sign_here() -> bool:
    """Return True if the database role of this process may insert signatures."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_table_privilege(%s, 'INSERT')", [TABLE])
        return bool(cursor.fetchone()[0])
