"""A copy of the template that was used is given to another test only in the template's state."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Group

from tests.databases import Copies, State, administrator, own_copy

LEFT_BEHIND = {
    "a row that was changed": "UPDATE auth_permission SET name = 'other' WHERE id = 1",
    "a row that was deleted": "DELETE FROM django_migrations WHERE id = 1",
    "a column": "ALTER TABLE auth_group ADD extra text",
    "a trigger that is off": "ALTER TABLE audit_auditevent DISABLE TRIGGER append_only_rows",
    "a setting": "ALTER DATABASE {name} SET statement_timeout = 1",
}


@pytest.fixture
def _database(django_db_setup: None, django_db_blocker: Any) -> Any:
    with django_db_blocker.unblock():
        yield


@pytest.mark.usefixtures("_database")
def test_new_rows_are_deleted_and_numbers_begin_anew() -> None:
    with own_copy() as first:
        Group.objects.create(name="left behind")
    with own_copy() as second:
        assert second != first
        assert Group.objects.create(name="new").pk == 1
        assert Group.objects.count() == 1


@pytest.mark.usefixtures("_database")
@pytest.mark.parametrize("statement", LEFT_BEHIND.values(), ids=LEFT_BEHIND)
def test_more_than_new_rows_ends_a_copy(statement: str) -> None:
    with own_copy() as name, administrator(name) as session:
        session.execute(statement.replace("{name}", name))
    with own_copy() as name, administrator(name) as session:
        assert State.of(session) == Copies.state
