"""The script that makes the two roles, run against a real Postgres under other names."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from adapterhub.embedded.layout import ADMIN_ROLE, database_admin_url
from adapterhub.embedded.postgres import EmbeddedPostgres
from adapterhub.embedded.postgres_binaries import binaries
from tests.composition import inline
from tests.conftest import HOME

OWNER, APP, SIGNER, DATABASE = "shop_owner", "shop_app", "shop_signer", "shop"


@pytest.fixture
def made(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[str]:
    """The database's socket folder, after the script ran as Postgres' entrypoint runs it."""
    (tmp_path / "database_url").write_text(f"postgres://{APP}:of-the-app@postgres:5432/{DATABASE}\n")
    (tmp_path / "database_owner_url").write_text(f"postgres://{OWNER}:of-the-owner@postgres:5432/{DATABASE}\n")
    (tmp_path / "database_signer_url").write_text(f"postgres://{SIGNER}:of-the-signer@postgres:5432/{DATABASE}\n")
    sockets = str(postgres.layout.postgres_sockets)
    programs = binaries(postgres.layout.postgres, account=None)
    env = {"PATH": f"{programs}{os.pathsep}{os.defpath}", "PGHOST": sockets, "POSTGRES_USER": ADMIN_ROLE}
    script = re.sub(r"\badapterhub\b", DATABASE, inline("roles").replace("adapterhub_", "shop_"))
    script = script.replace("/run/secrets", str(tmp_path))
    subprocess.run(["/bin/bash", "-Eeuo", "pipefail", "-c", script], env=env, check=True)
    yield sockets
    with psycopg.connect(database_admin_url(HOME), autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        admin.execute(f"DROP ROLE {APP}, {OWNER}, {SIGNER}")


def connect(role: str, sockets: str) -> psycopg.Connection:
    """Connect as the server's superuser, who is known by peer, and act as the role from then on."""
    connection = psycopg.connect(host=sockets, dbname=DATABASE, user=ADMIN_ROLE, autocommit=True)
    connection.execute(f"SET SESSION AUTHORIZATION {role}")
    return connection


def test_the_application_may_work_on_the_owners_tables_and_no_more(made: str) -> None:
    with connect(OWNER, made) as owner, connect(APP, made) as app:
        owner.execute("CREATE TABLE orders (id bigserial PRIMARY KEY, note text)")
        app.execute("INSERT INTO orders (note) VALUES ('first')")
        app.execute("UPDATE orders SET note = 'changed'")
        assert app.execute("DELETE FROM orders RETURNING note").fetchall() == [("changed",)]
        for statement in (
            "DROP TABLE orders",
            "TRUNCATE orders",
            "CREATE TABLE mine ()",
            "ALTER TABLE orders ADD x int",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                app.execute(statement)


def test_the_signer_may_do_what_the_application_may_and_not_the_other_way(made: str) -> None:
    with psycopg.connect(database_admin_url(HOME)) as admin:
        query = "SELECT pg_has_role(%s, %s, 'MEMBER')"
        pairs = [(SIGNER, APP), (APP, SIGNER), (APP, OWNER), (SIGNER, OWNER)]
        assert [admin.execute(query, pair).fetchone() for pair in pairs] == [(True,), (False,), (False,), (False,)]


def test_each_role_has_the_password_of_its_url(made: str) -> None:
    with psycopg.connect(database_admin_url(HOME)) as admin:
        rows = dict(admin.execute("SELECT rolname, rolpassword FROM pg_authid WHERE rolname LIKE 'shop%'").fetchall())
    passwords = {OWNER: b"of-the-owner", APP: b"of-the-app", SIGNER: b"of-the-signer"}
    assert set(rows) == set(passwords)
    for role, password in passwords.items():
        assert is_password(rows[role], password)


def is_password(verifier: str, password: bytes) -> bool:
    """SCRAM-SHA-256$iterations:salt$stored key:server key, made again with the same salt."""
    _, salted, keys = verifier.split("$")
    iterations, salt = salted.split(":")
    secret = hashlib.pbkdf2_hmac("sha256", password, b64decode(salt), int(iterations))
    stored = hashlib.sha256(hmac.digest(secret, b"Client Key", "sha256")).digest()
    return stored == b64decode(keys.split(":")[0])
