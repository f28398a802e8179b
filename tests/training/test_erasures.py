"""What is kept, held and erased: a dataset's content goes by two people, never under a legal hold, and once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.test import Client
from rest_framework.test import APIClient

from adapterhub.accounts.models import Membership, Project, User
from adapterhub.audit.models import AuditEvent, UnsealedEvent, verify
from adapterhub.core.errors import Conflict, DomainError, Invalid, NotAllowed
from adapterhub.workspace import store
from tests.builders import member, rows, write_jsonl
from training.models import Dataset, Erasure


@pytest.fixture
def dana(project: Project) -> User:
    return member("dana", project, Membership.Role.APPROVER)


@pytest.fixture
def erasure(dataset: Dataset, alice: User) -> Erasure:
    dataset.keep_as("none", reason="The customer left.", by=alice.as_actor())
    return Erasure.request(dataset, reason="Their right.", by=alice.as_actor())


def execute(statement: str, *values: object) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)


def erase_by_sql(signer: User) -> None:
    execute("UPDATE training_erasure SET status = 'approved', signer_id = %s", signer.pk)
    execute("UPDATE training_dataset SET status = 'erased'")


def by_page(erasure: Erasure, author: User) -> None:
    client = Client()
    client.force_login(author)
    answer = client.post(f"/datasets/{erasure.dataset.pk}/erasure/approve/", {"reason": "mine", "meaning": "approved"})
    if answer.status_code == 403:
        raise NotAllowed("refused")


def by_rest(erasure: Erasure, author: User) -> None:
    api = APIClient()
    api.force_login(author)
    if api.post(f"/api/v1/erasures/{erasure.pk}/approve/", {"reason": "mine"}).json().get("code") == "own_request":
        raise NotAllowed("refused")


def by_model(erasure: Erasure, author: User) -> None:
    erasure.approve(reason="mine", by=author.as_actor())


def by_sql(erasure: Erasure, author: User) -> None:
    execute("UPDATE training_erasure SET status = 'approved', signer_id = %s", author.pk)


def by_sql_without_a_signer(erasure: Erasure, author: User) -> None:
    execute("UPDATE training_erasure SET status = 'approved'")


def by_sql_on_the_dataset(erasure: Erasure, author: User) -> None:
    execute("UPDATE training_dataset SET status = 'erased'")


def by_sql_that_deletes(erasure: Erasure, author: User) -> None:
    execute("DELETE FROM training_erasure")


def by_sql_that_deletes_the_dataset(erasure: Erasure, author: User) -> None:
    execute("DELETE FROM training_dataset WHERE id = %s", erasure.dataset_id)


@pytest.mark.threat("B4")
@pytest.mark.parametrize(
    "door",
    [
        by_page,
        by_rest,
        by_model,
        by_sql,
        by_sql_without_a_signer,
        by_sql_on_the_dataset,
        by_sql_that_deletes,
        by_sql_that_deletes_the_dataset,
    ],
)
def test_who_asked_cannot_erase(erasure: Erasure, alice: User, door: Callable[[Erasure, User], None]) -> None:
    with pytest.raises((DomainError, DatabaseError)):
        door(erasure, alice)
    erasure.refresh_from_db()
    assert (erasure.status, erasure.dataset.status) == ("pending", "ready")
    assert store().has(erasure.dataset.digest)


def test_another_person_erases_the_bytes_and_the_trail_stays(
    fresh_database: str, erasure: Erasure, dana: User, project: Project
) -> None:
    dataset = erasure.dataset
    copy = dataset.folder()
    erasure.approve(reason="Seen the letter.", by=dana.as_actor(), meaning="approved")
    erasure.drop_content()
    dataset = Dataset.objects.get()
    assert (dataset.status, store().has(dataset.digest), copy.exists()) == ("erased", False, False)
    with pytest.raises(Invalid, match="erased, not ready"):
        dataset.folder()
    event = AuditEvent.objects.get(tag="dataset:erased")
    assert (event.actor_name, event.before, event.reason) == ("dana", {"digest": dataset.digest}, "Seen the letter.")
    assert verify(project)[1] == []


def test_erased_content_does_not_come_back(
    fresh_database: str, erasure: Erasure, dana: User, alice: User, project: Project, tmp_path: Path
) -> None:
    erasure.approve(reason="yes", by=dana.as_actor())
    erasure.drop_content()
    file = write_jsonl(tmp_path / "again.jsonl", rows())
    again = Dataset.objects.get()
    with pytest.raises(Invalid, match="cannot be uploaded again"):
        Dataset.create(project=project, name="again", file=file, filename="again.jsonl", by=alice.as_actor())
    assert not store().has(again.digest)
    with pytest.raises(DatabaseError, match="erased for good"):
        execute("UPDATE training_dataset SET status = 'ready'")


@pytest.mark.threat("B4")
def test_the_class_and_the_hold_go_before(dataset: Dataset, alice: User, dana: User) -> None:
    by = alice.as_actor()
    with pytest.raises(Conflict, match="kept until"):
        Erasure.request(dataset, reason="x", by=by)
    dataset.keep_as("none", reason="The customer left.", by=by)
    erasure = Erasure.request(dataset, reason="x", by=by)
    dataset.hold(reason="Case 12/2026", by=by)
    with pytest.raises(Conflict, match="legal hold"):
        erasure.approve(reason="x", by=dana.as_actor())
    with pytest.raises(DatabaseError, match="without a legal hold"), transaction.atomic():
        erase_by_sql(dana)
    dataset.release(reason="The case is closed.", by=by)
    events = [*AuditEvent.objects.about(dataset).order_by("id").values_list("tag", "before", "reason")]
    assert ("dataset:hold_placed", {"hold_reason": ""}, "Case 12/2026") in events
    assert ("dataset:hold_released", {"hold_reason": "Case 12/2026"}, "The case is closed.") in events
    assert ("dataset:retention_changed", {"retention": "lifecycle"}, "The customer left.") in events


def test_the_page_shows_and_changes_how_it_is_kept(dataset: Dataset, alice: User, dana: User, client: Client) -> None:
    client.force_login(alice)
    page = f"/datasets/{dataset.pk}/"
    client.post(f"{page}keep/", {"retention": "none", "hold": "on", "reason": "Case 12/2026"})
    assert b"A legal hold: Case 12/2026" in client.get(page).content
    client.post(f"{page}keep/", {"retention": "none", "reason": "closed"})
    client.post(f"{page}erase/", {"reason": "Their right."})
    assert b"Sign and erase" not in client.get(page).content
    client.force_login(dana)
    assert b"Sign and erase" in client.get(page).content
    client.post(f"{page}erasure/reject/", {"reason": "We still need it.", "meaning": "reviewed"})
    assert Erasure.objects.get().status == "rejected"
    assert Dataset.objects.get().status == "ready"


def test_rest_keeps_asks_and_decides(dataset: Dataset, alice: User, dana: User) -> None:
    api = APIClient()
    api.force_login(alice)
    path = f"/api/v1/datasets/{dataset.pk}/"
    retained = api.post(f"{path}keep/", {"retention": "none", "reason": "left"}).json()
    assert (retained["retention"], retained["kept_until"][:10]) == ("none", retained["created_at"][:10])
    erasure = api.post(f"{path}erase/", {"reason": "right"}).json()
    api.force_login(dana)
    decided = api.post(f"/api/v1/erasures/{erasure['id']}/reject/", {"reason": "needed", "meaning": "reviewed"}).json()
    assert (decided["status"], decided["signer"], decided["meaning"]) == ("rejected", "dana", "reviewed")


def test_who_read_the_rows_is_recorded(dataset: Dataset, bob: User, client: Client) -> None:
    client.force_login(bob)
    client.get(f"/datasets/{dataset.pk}/")
    client.get(f"/api/v1/datasets/{dataset.pk}/preview/")
    read = UnsealedEvent.objects.filter(fields__tag="dataset:read", project=dataset.project)
    assert {row.fields["actor_name"] for row in read} == {"bob"}
    assert read.count() == 2


def test_the_copies_of_a_host_go_too(fresh_database: str, erasure: Erasure, dana: User) -> None:
    from training.models.erasure import drop_erased

    digest = erasure.dataset.digest
    erasure.approve(reason="yes", by=dana.as_actor())
    erasure.drop_content()
    copy = settings.WORK_DIR / "datasets" / digest
    copy.mkdir(parents=True)
    assert drop_erased() == 1
    assert not copy.exists()
