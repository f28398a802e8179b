"""The hash chain against somebody who owns the database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection, connections, transaction

from adapterhub.accounts.models import Project
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import system

ACTOR = system("test")


def record(project: Project, number: int) -> None:
    with transaction.atomic():
        AuditEvent.record(Tag.PROJECT_CREATED, project, by=ACTOR, project=project, after={"n": number, "x": 0.5})


def tamper(statement: str) -> None:
    """As the owner, with the triggers off."""
    with connections["owner"].cursor() as cursor:
        cursor.execute("ALTER TABLE audit_auditevent DISABLE TRIGGER USER")
        cursor.execute(statement)
        cursor.execute("ALTER TABLE audit_auditevent ENABLE ALWAYS TRIGGER append_only_rows")


@pytest.fixture
def trail(fresh_database: str, project: Project) -> Project:
    for number in range(5):
        record(project, number)
    return project


def test_an_untouched_trail_holds(trail: Project) -> None:
    assert verify(trail) == (5, [])


@pytest.mark.parametrize(
    ("statement", "faults"),
    [
        ("UPDATE audit_auditevent SET reason = 'x' WHERE sequence = 3", [(3, "edited")]),
        (
            "UPDATE audit_auditevent SET canonical = convert_to('{\"sequence\":3}', 'UTF8') WHERE sequence = 3",
            [(3, "edited")],
        ),
        ("DELETE FROM audit_auditevent WHERE sequence = 2", [(2, "gap")]),
    ],
)
def test_what_was_done_to_the_rows_is_found(trail: Project, statement: str, faults: list[tuple[int, str]]) -> None:
    tamper(statement)
    assert [(fault.sequence, fault.kind) for fault in verify(trail)[1]] == faults


def test_the_sequence_is_the_order_of_commits(fresh_database: str, project: Project) -> None:
    def write(number: int) -> None:
        record(project, number)
        connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(40)))
    assert verify(project) == (40, [])


def test_without_a_transaction_nothing_is_recorded(trail: Project) -> None:
    with pytest.raises(transaction.TransactionManagementError):
        AuditEvent.record(Tag.PROJECT_CREATED, trail, by=ACTOR, project=trail)
