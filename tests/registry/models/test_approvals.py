"""Four eyes: alice makes and asks, dana approves, olga operates; by every door the author is refused."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from adapterhub.accounts.models import Membership, Project, User
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.core.errors import Conflict, DomainError, InvalidTransition, NotAllowed
from registry.models import AdapterVersion, Alias, Approval, ApprovalStatus, Rollout
from registry.models.approval import REVIEW_WITHIN
from registry.serving.reconciler import RECONCILER
from tests.builders import member
from tests.builders.rollouts import measured, opened

STEPS = [{"weight": 50}]


@pytest.fixture
def dana(project: Project) -> User:
    return member("dana", project, Membership.Role.APPROVER)


@pytest.fixture
def olga(project: Project) -> User:
    return member("olga", project, Membership.Role.OPERATOR)


@pytest.fixture
def rollout(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    """Alice is admin of the project, so her role alone would let her sign."""
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    return Rollout.create(alias=alias, candidate=candidate, steps=STEPS, reason="try it", by=alice.as_actor())


@pytest.fixture
def approval(rollout: Rollout) -> Approval:
    """A rollout on a protected alias asks by itself."""
    return rollout.approvals.get()


def execute(statement: str, *values: Any) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)


def by_page(approval: Approval, author: User) -> None:
    client = Client(headers={"Referer": "http://testserver/"})
    client.force_login(author)
    body = {"reason": "mine", "meaning": "approved", "seen": approval.bound}
    answer = client.post(reverse("decide", args=[approval.pk, "approve"]), body, follow=True)
    if b"cannot approve your own" in answer.content:
        raise NotAllowed("refused")


def by_rest(approval: Approval, author: User) -> None:
    api = APIClient()
    api.force_login(author)
    answer = api.post(f"/api/v1/approvals/{approval.pk}/approve/", {"reason": "mine"})
    if answer.status_code == 403 and answer.json()["code"] == "own_request":
        raise NotAllowed("refused")


def by_admin(approval: Approval, author: User) -> None:
    User.objects.filter(pk=author.pk).update(is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(User.objects.get(pk=author.pk))
    page = f"/admin/registry/approval/{approval.pk}/change/"
    assert client.get(page).status_code == 200
    if client.post(page, {"status": "approved"}).status_code == 403:
        raise NotAllowed("refused")


def by_model(approval: Approval, author: User) -> None:
    approval.approve(reason="mine", by=author.as_actor())


SIGN = (
    "INSERT INTO registry_signature (approval_id, author_id, user_id, name, decision, meaning, reason, bound, "
    "auth_method, at) VALUES (%s, %s, %s, 'x', 'approve', 'approved', '', %s, 'sql', now())"
)


def by_sql(approval: Approval, author: User) -> None:
    execute(SIGN, approval.pk, author.pk, author.pk, approval.bound)


def by_sql_that_hides_the_author(approval: Approval, author: User) -> None:
    execute(SIGN, approval.pk, None, author.pk, approval.bound)


def by_sql_on_the_request(approval: Approval, author: User) -> None:
    execute("UPDATE registry_approval SET status = 'approved' WHERE id = %s", approval.pk)


def by_sql_on_its_author(approval: Approval, author: User) -> None:
    execute("UPDATE registry_approval SET author_id = NULL WHERE id = %s", approval.pk)


def by_sql_on_the_alias(approval: Approval, author: User) -> None:
    version = approval.candidate_id
    execute("UPDATE registry_alias SET version_id = %s WHERE id = %s", version, approval.alias_id)


def by_sql_on_the_history(approval: Approval, author: User) -> None:
    columns = "alias_id, version_id, at, actor_name, reason"
    execute(
        f"INSERT INTO registry_aliasmove ({columns}) VALUES (%s, %s, now(), 'x', '')",  # noqa: S608
        approval.alias_id,
        approval.candidate_id,
    )


def by_sql_on_the_policy(approval: Approval, author: User) -> None:
    execute("UPDATE registry_alias SET policy = '{}' WHERE id = %s", approval.alias_id)


@pytest.mark.threat("B1")
@pytest.mark.parametrize(
    "door",
    [
        by_page,
        by_rest,
        by_admin,
        by_model,
        by_sql,
        by_sql_that_hides_the_author,
        by_sql_on_the_request,
        by_sql_on_its_author,
        by_sql_on_the_alias,
        by_sql_on_the_history,
        by_sql_on_the_policy,
    ],
)
def test_an_author_cannot_approve_their_own_promotion(
    approval: Approval, alice: User, door: Callable[[Approval, User], None]
) -> None:
    with pytest.raises((DomainError, DatabaseError)):
        door(approval, alice)
    approval.refresh_from_db()
    assert approval.status == ApprovalStatus.PENDING
    with pytest.raises(InvalidTransition, match="waits for signatures"):
        approval.rollout.promote(reason="alone", by=alice.as_actor())
    assert Alias.objects.get().version != approval.candidate


def test_another_person_approves_and_the_operator_promotes(
    rollout: Rollout, approval: Approval, dana: User, olga: User
) -> None:
    with pytest.raises(InvalidTransition, match="waits for signatures"):
        rollout.promote(reason="now", by=olga.as_actor())
    approval.approve(reason="The evaluation holds.", by=dana.as_actor(), seen=approval.bound)
    rollout.started(by=RECONCILER)
    rollout.promote(reason="now", by=olga.as_actor())
    approval.refresh_from_db()
    assert (rollout.status, approval.status) == ("promoted", "used")
    tags = [*AuditEvent.objects.about(approval).values_list("tag", flat=True)]
    assert tags == ["approval:used", "approval:approved", "approval:signed", "approval:requested"]
    assert AuditEvent.objects.about(approval).first().evidence["candidate"]["digest"] == rollout.candidate.digest
    assert verify(rollout.alias.project)[1] == []


@pytest.mark.threat("B2")
def test_the_second_account_of_the_author_is_the_author(approval: Approval, alice: User, dana: User) -> None:
    User.objects.filter(pk__in=[alice.pk, dana.pk]).update(email="alice@example.org")
    dana.refresh_from_db()
    with pytest.raises(NotAllowed, match="own change"):
        Approval.objects.get().approve(reason="me again", by=dana.as_actor())


@pytest.mark.threat("B2")
def test_tokens_and_other_roles_cannot_approve(approval: Approval, ci: str, olga: User, charlie: User) -> None:
    api = APIClient(headers={"Authorization": f"Bearer {ci}"})
    answer = api.post(f"/api/v1/approvals/{approval.pk}/approve/", {"reason": "bot"})
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")
    for person in (olga, charlie):
        with pytest.raises(NotAllowed, match="role"):
            approval.approve(reason="I may not", by=person.as_actor())
    with pytest.raises(NotAllowed, match="a token cannot"):
        approval.approve(reason="system", by=RECONCILER)


def test_nobody_signs_twice(alias: Alias, candidate: AdapterVersion, alice: User, dana: User, project: Project) -> None:
    alias.set_policy({"quorum": 2}, by=alice.as_actor())
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=STEPS, reason="try", by=alice.as_actor())
    approval = rollout.approvals.get()
    approval.approve(reason="first", by=dana.as_actor())
    assert approval.status == ApprovalStatus.PENDING
    with pytest.raises(Conflict, match="signed"):
        approval.approve(reason="again", by=dana.as_actor())
    approval.approve(reason="second", by=member("emil", project, Membership.Role.APPROVER).as_actor())
    assert approval.status == ApprovalStatus.APPROVED


def change_evaluation(version: AdapterVersion) -> None:
    """As the owner, since nobody else can."""
    with connections["owner"].cursor() as cursor:
        cursor.execute("ALTER TABLE registry_adapterversion DISABLE TRIGGER immutable_rows")
        cursor.execute("UPDATE registry_adapterversion SET metrics = '{\"loss\": 9}' WHERE id = %s", [version.pk])
        cursor.execute("ALTER TABLE registry_adapterversion ENABLE ALWAYS TRIGGER immutable_rows")


@pytest.mark.parametrize("approved", [False, True])
def test_an_approval_lapses_when_the_evaluation_changes(
    fresh_database: str, rollout: Rollout, alice: User, dana: User, approved: bool
) -> None:
    approval = rollout.approvals.get()
    if approved:
        approval.approve(reason="fine", by=dana.as_actor())
    change_evaluation(rollout.candidate)
    approval, rollout = Approval.objects.get(), Rollout.objects.get()
    with pytest.raises(Conflict, match="changed"):
        rollout.promote(reason="x", by=alice.as_actor()) if approved else approval.approve(
            reason="x", by=dana.as_actor()
        )
    assert Approval.objects.get().status == ApprovalStatus.LAPSED
    again = rollout.request_approval(reason="new figures", by=alice.as_actor())
    again.approve(reason="seen", by=dana.as_actor())
    rollout.started(by=RECONCILER)
    rollout.promote(reason="now", by=alice.as_actor())


@pytest.mark.parametrize("approved", [False, True])
def test_an_approval_lapses_when_the_version_is_evaluated_again(
    rollout: Rollout, approval: Approval, alice: User, dana: User, approved: bool
) -> None:
    if approved:
        approval.approve(reason="fine", by=dana.as_actor())
    change = {"against": {"mean": -0.1, "low": -0.2, "high": -0.05}}
    rollout.candidate.evaluations.create(
        base_digest=rollout.candidate.base_digest, dataset_digest="d" * 64, metrics={"differences": change}
    )
    with pytest.raises(Conflict, match="changed"):
        rollout.promote(reason="x", by=alice.as_actor()) if approved else approval.approve(
            reason="x", by=dana.as_actor()
        )
    assert Approval.objects.get().status == ApprovalStatus.LAPSED
    again = rollout.request_approval(reason="new figures", by=alice.as_actor())
    assert again.evidence["evaluations"][0]["measured"] == {"differences": change}


def test_a_signature_is_about_what_was_seen(approval: Approval, dana: User) -> None:
    with pytest.raises(Conflict, match="evidence of this request has changed"):
        approval.approve(reason="old page", by=dana.as_actor(), seen="0" * 64)


def test_a_signature_keeps_the_verdicts_of_its_time(
    alias: Alias, candidate: AdapterVersion, alice: User, dana: User, client: Client, ci: str
) -> None:
    """The plan is signed before anybody is served; whoever signs while it serves, signs with numbers, which stay."""
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    rollout = opened(alias, candidate, alice)
    assert rollout.approvals.get().signatures.get().verdicts["unmet"][0] == "The candidate has served nobody yet."
    measured(rollout, control=0.05, candidate=0.05)
    approval = rollout.request_approval(reason="Half of the users now.", by=alice.as_actor())
    approval.approve(reason="It holds.", by=dana.as_actor())
    measured(rollout, control=0.0, candidate=0.9)
    frozen = approval.signatures.get().verdicts
    assert frozen["findings"][0]["candidate"]["users"] == 2000
    headers = {"Authorization": f"Bearer {ci}"}
    [row] = client.get(f"/api/v1/approvals/{approval.pk}/", headers=headers).json()["signatures"]
    assert row["verdicts"] == frozen
    client.force_login(alice)
    page = client.get(f"/approvals/{approval.pk}/").content.decode()
    assert "The verdicts when dana signed" in page


def test_a_policy_of_a_protected_alias_needs_another_person(
    alias: Alias, alice: User, dana: User, rollout: Rollout
) -> None:
    alias.refresh_from_db()
    with pytest.raises(NotAllowed, match="another person"):
        alias.set_policy({}, by=alice.as_actor())
    request = alias.request_policy({}, reason="The customer left.", by=alice.as_actor())
    with pytest.raises(NotAllowed, match="own change"):
        request.approve(reason="mine", by=alice.as_actor())
    request.approve(reason="yes", by=dana.as_actor())
    alias.set_policy({}, by=alice.as_actor())
    assert alias.quorum == 0


def test_a_broken_glass_must_be_reviewed(rollout: Rollout, approval: Approval, olga: User, dana: User) -> None:
    approval.break_glass(reason="Production gives wrong advice.", by=olga.as_actor())
    rollout.started(by=RECONCILER)
    rollout.promote(reason="emergency", by=olga.as_actor())
    Approval.objects.update(review_due_at=approval.created_at - REVIEW_WITHIN)
    with pytest.raises(Conflict, match="waiting for its review"):
        rollout.alias.request_policy({}, reason="next", by=olga.as_actor())
    with pytest.raises(NotAllowed):
        approval.review(reason="by myself", by=olga.as_actor())
    approval.review(reason="It was right.", by=dana.as_actor())
    assert approval.status == ApprovalStatus.REVIEWED


def test_a_rejected_request_is_over(approval: Approval, dana: User) -> None:
    approval.reject(reason="The loss is worse.", by=dana.as_actor())
    with pytest.raises(InvalidTransition):
        approval.approve(reason="changed my mind", by=dana.as_actor())


def test_a_signature_needs_its_person(approval: Approval, dana: User) -> None:
    api = APIClient()
    api.force_login(dana)
    session = api.session
    session["signed_in_at"] = 0
    session.save()
    path = f"/api/v1/approvals/{approval.pk}/approve/"
    assert api.post(path, {"reason": "x"}).json()["code"] == "reauthentication_required"
    assert api.post(path, {"reason": "x", "password": "wrong"}).status_code == 403
    answer = api.post(path, {"reason": "x", "password": "dana-long-password", "meaning": "reviewed"})
    assert answer.json()["status"] == "approved", answer.content
    signature = answer.json()["signatures"][0]
    assert (signature["name"], signature["meaning"], signature["bound"]) == ("dana", "reviewed", approval.bound)


def test_a_signer_reads_what_is_signed_for_not_a_dump(approval: Approval, dana: User, client: Client) -> None:
    client.force_login(dana)
    page = client.get(reverse("approval", args=[approval.pk])).content.decode()
    assert approval.evidence["candidate"]["digest"] in page
    assert "{&#x27;" not in page


def test_the_inbox_shows_what_waits(approval: Approval, dana: User, charlie: User, client: Client) -> None:
    client.force_login(dana)
    assert reverse("approval", args=[approval.pk]).encode() in client.get(reverse("approvals")).content
    page = client.get(reverse("approval", args=[approval.pk])).content.decode()
    assert approval.bound in page
    assert "Sign and approve" in page
    client.force_login(charlie)
    assert client.get(reverse("approval", args=[approval.pk])).status_code == 404
    assert client.get(reverse("approval", args=[uuid.uuid4()])).status_code == 404
