"""A copy of the database and of the logs: neither holds a secret that opens a door."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest
from django.db import connection
from django.test import Client

from adapterhub.accounts.models import Project, User
from adapterhub.audit.access_log import seal
from adapterhub.embedded.valkey import EmbeddedValkey
from adapterhub.redaction import Redacting
from registry.serving.routing_table import publish
from registry.serving.valkey import valkey as connect
from tests.builders.rest import client


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the console of the product would show, debugging included."""
    stream = io.StringIO()
    console = logging.StreamHandler(stream)
    console.setFormatter(Redacting("%(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(console)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(console)
    root.setLevel(level)


def dump() -> str:
    """Every row of every table as text, as in a copy that somebody took away."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
        tables = [name for (name,) in cursor.fetchall()]
        texts = []
        for table in tables:
            cursor.execute(f"SELECT coalesce(string_agg(t::text, ' '), '') FROM {table} t")  # noqa: S608 (a name of ours)
            texts.append(cursor.fetchone()[0])
    return "\n".join(texts)


@pytest.mark.threat("C2")
def test_a_token_lies_in_no_table_no_log_and_no_routing_table(
    valkey: EmbeddedValkey, ci: str, project: Project, alice: User, lines: io.StringIO
) -> None:
    body = {"project": "eu", "name": "bot", "scopes": ["infer", "read"]}
    text = client(ci, HTTP_IDEMPOTENCY_KEY="once").post("/api/v1/tokens/", body).json()["token"]
    assert client(text).get("/api/v1/adapters/").status_code == 200
    assert client(text[:-1]).get("/api/v1/adapters/").status_code == 401
    logging.getLogger("django.request").warning("Authorization: Bearer %s", text)
    seal()
    publish()
    secret = text.split("_", 2)[2]
    with connect() as channel:
        published = channel.get("ah:routing-table").decode()
    copy = dump()
    assert "bot" in copy, "the copy holds the tables"
    for place in (copy, copy.replace("\\x", ""), lines.getvalue(), published):
        assert secret not in place
        assert secret.encode().hex() not in place


@pytest.mark.threat("C2")
def test_a_password_lies_in_no_table_and_no_log(project: Project, bob: User, lines: io.StringIO) -> None:
    Client().post("/login/", {"username": "bob", "password": "bob-long-password"})
    Client().post("/login/", {"username": "bob", "password": "a-wrong-guess"})
    for word in ("bob-long-password", "a-wrong-guess"):
        assert word not in dump() + lines.getvalue()
