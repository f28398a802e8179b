"""The rights of the signer's database role: with a signer process only that role may insert signatures."""

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


def divide_rights(using: str, **_: Any) -> None:
    """Give the right to sign to the signer's role alone if there is a signer process; it is never given back.

    Runs after each migration, as the owner of the tables. Raises ImproperlyConfigured without the role.
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
    """Take the right to sign from every role but the owner, and give it to the signer's."""
    cursor.execute(HOLDERS, [TABLE, settings.SIGNER_ROLE])
    for (role,) in cursor.fetchall():
        cursor.execute(statement("REVOKE INSERT ON {} FROM {}", role))
    cursor.execute(statement("GRANT INSERT ON {} TO {}", settings.SIGNER_ROLE))


def statement(text: str, role: str) -> sql.Composed:
    """Return the statement about the table of signatures and a role."""
    return sql.SQL(text).format(sql.Identifier(TABLE), sql.Identifier(role))


def may_sign_here() -> bool:
    """Return True if the database role of this process may insert signatures."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_table_privilege(%s, 'INSERT')", [TABLE])
        return bool(cursor.fetchone()[0])
