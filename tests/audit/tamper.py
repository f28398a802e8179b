"""What somebody who owns the database can do to a trail."""

from __future__ import annotations

from django.db import connections

from adapterhub.audit.models import AuditEvent
from adapterhub.audit.verifier import link_hash

TABLE = "audit_auditevent"
EDIT = f"UPDATE {TABLE} SET canonical = convert_to(replace(convert_from(canonical, 'UTF8'), '0.5', '0.7'), 'UTF8')"  # noqa: S608
DELETE = f"DELETE FROM {TABLE}"  # noqa: S608
SWAP = f"UPDATE {TABLE} SET sequence = CASE sequence WHEN 102 THEN 3 ELSE 2 END WHERE sequence IN (102, 103)"  # noqa: S608


def as_owner(*statements: str) -> None:
    """Run the statements with the triggers off."""
    with connections["owner"].cursor() as cursor:
        cursor.execute(f"ALTER TABLE {TABLE} DISABLE TRIGGER USER")
        for statement in statements:
            cursor.execute(statement)
        cursor.execute(f"ALTER TABLE {TABLE} ENABLE ALWAYS TRIGGER append_only_rows")
        cursor.execute(f"ALTER TABLE {TABLE} ENABLE ALWAYS TRIGGER append_only_table")


def edit(sequence: int) -> None:
    as_owner(f"{EDIT} WHERE sequence = {sequence}")


def delete(sequence: int) -> None:
    as_owner(f"{DELETE} WHERE sequence = {sequence}")


def cut_after(sequence: int) -> None:
    as_owner(f"{DELETE} WHERE sequence > {sequence}")


def reorder() -> None:
    """The second and the third event change places."""
    as_owner(f"UPDATE {TABLE} SET sequence = sequence + 100 WHERE sequence IN (2, 3)", SWAP)  # noqa: S608


def rehash(sequence: int) -> None:
    """Edit an event and make every hash after it again, so that the chain holds in itself."""
    edit(sequence)
    events = list(AuditEvent.objects.filter(sequence__gte=sequence).order_by("sequence"))
    previous = bytes(events[0].prev_hash)
    statements = []
    for event in events:
        head = link_hash(previous, bytes(event.canonical))
        statements.append(
            f"UPDATE {TABLE} SET prev_hash = '\\x{previous.hex()}', hash = '\\x{head.hex()}' "  # noqa: S608
            f"WHERE sequence = {event.sequence}"
        )
        previous = head
    as_owner(*statements)
