"""A database of an earlier commit is migrated without a loss, and serves."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import verify
from registry.models import Alias
from tests.builders import rest

# Schema and rows as the migrations and models of that commit made them: the last one before the move of rooms.
DUMP = Path(__file__).parent / "dumps/0070e58c9ca6.sql.gz"
TOKEN = "ah_tvon8yrgyw3y_QG8BIDYvzQMJL2wX0jmiMSbXmzfRP5tPYz9l6DmVJzA"  # noqa: S105 - of the dump alone
# What a migration takes away on purpose, as "table" or "table.column", with the reason.
REMOVED = {
    # Answers from before it was kept what their caller needed may be repeated to nobody.
    "api_idempotentrequest",
}
# New columns without a default that triggers fill: the time of an answer, and the mail address of who signed.
FILLED = {"registry_feedback.response_at", "registry_signature.person"}
# The landed release does not know who is behind a request and may not sign it: it can ask nobody to sign meanwhile.
WITHHELD = {"registry_approval.people"}
# Django's own tables; what a migration adds to them is no loss.
OWN = {"django_migrations", "django_content_type", "auth_permission"}

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture
def restored(empty_database: str) -> None:
    with connections["owner"].cursor() as cursor:
        cursor.execute(gzip.decompress(DUMP.read_bytes()).decode())


def rows_of_all_tables() -> Rows:
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        tables = [name for (name,) in cursor.fetchall() if name not in OWN]
        return {table: rows_of(cursor, table) for table in tables}


def rows_of(cursor: Any, table: str) -> list[dict[str, Any]]:
    cursor.execute(f'SELECT to_jsonb(row)::text FROM "{table}" AS row')  # noqa: S608 - a name from the catalogue
    return [json.loads(text) for (text,) in cursor.fetchall()]


def lost(before: Rows, after: Rows) -> dict[str, list[str]]:
    """Return by table the columns and rows that are there no more, a row as its text in the columns that are left."""
    losses = {}
    for table, rows in before.items():
        if table in REMOVED or not rows:
            continue
        columns = {name for name in rows[0] if f"{table}.{name}" not in REMOVED}
        left = Counter(text_of(row, columns) for row in after.get(table, []))
        if missing := Counter(text_of(row, columns) for row in rows) - left:
            losses[table] = sorted(missing)
    return losses


def text_of(row: dict[str, Any], columns: set[str]) -> str:
    return json.dumps({name: value for name, value in row.items() if name in columns}, sort_keys=True)


@pytest.mark.slow
def test_a_database_from_before_the_rooms_loses_nothing_and_serves(restored: None) -> None:
    before = rows_of_all_tables()
    assert len([table for table, rows in before.items() if rows]) >= 30
    call_command("migrate", verbosity=0)
    for run in before["training_trainingrun"]:
        # Written down by a migration, since the default is another now.
        run["hyperparameters"] = {"scheduler": "cosine", **run["hyperparameters"]}
    assert lost(before, rows_of_all_tables()) == {}
    count, faults = verify(Project.objects.get(slug="eu"))
    assert (count > 10, faults) == (True, [])

    alias = Alias.objects.get(name="compliance")
    client = Client()
    client.force_login(User.objects.get(username="alice"))
    page = client.get(reverse("alias", args=[alias.name])).content.decode()
    assert str(alias.version) in page
    answer = rest.client(TOKEN).get(f"/api/v1/aliases/{alias.name}/")
    assert (answer.status_code, answer.json()["version"]) == (200, alias.version.served_name)


def columns() -> dict[str, bool]:
    """Map "table.column" to True if an insert has to name the column."""
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            "SELECT table_name || '.' || column_name, is_nullable = 'NO' AND column_default IS NULL "
            "AND is_identity = 'NO' FROM information_schema.columns WHERE table_schema = 'public'"
        )
        return dict(cursor.fetchall())


@pytest.mark.slow
def test_the_new_schema_has_what_the_landed_release_reads_and_demands_nothing_else_of_its_inserts(
    restored: None,
) -> None:
    before = columns()
    call_command("migrate", verbosity=0)
    after = columns()
    assert before.keys() - after.keys() == set()
    known = {name.partition(".")[0] for name in before}
    demanded = {name for name, is_demanded in after.items() if is_demanded and not before.get(name)}
    assert {name for name in demanded if name.partition(".")[0] in known} == FILLED | WITHHELD


def test_a_lost_row_and_a_lost_column_are_noticed() -> None:
    before = {"dataset": [{"id": 1, "name": "incidents"}, {"id": 2, "name": "reports"}]}
    assert list(lost(before, {"dataset": [{"id": 1, "name": "incidents"}]})) == ["dataset"]
    assert list(lost(before, {"dataset": [{"id": 1}, {"id": 2}]})) == ["dataset"]
    assert lost(before, {"dataset": [*before["dataset"], {"id": 3, "name": "new"}]}) == {}
