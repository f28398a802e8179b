"""Attacks by one person who is two: service accounts, tokens without a person, and second accounts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from rest_framework.test import APIClient

from adapterhub.accounts import service_accounts, tokens
from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.accounts.signing_rules import mail_keys
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Conflict, Invalid, NotAllowed
from registry.models import AdapterVersion, Alias, Approval, Rollout
from tests.builders import member


@pytest.fixture
def dana(project: Project) -> User:
    return member("dana", project, Membership.Role.APPROVER)


@pytest.fixture
def guarded(alias: Alias, alice: User) -> Alias:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    return alias


def bearer(text: str) -> APIClient:
    return APIClient(headers={"Authorization": f"Bearer {text}"})


def robot(project: Project, maker: User, name: str = "robot") -> tuple[User, str]:
    """A service account that operates, and its token, both made by one person."""
    account = service_accounts.create(project, name, Membership.Role.OPERATOR, by=maker.as_actor())
    scopes = ["read", "operate"]
    return account, tokens.create(project, name, scopes, by=maker.as_actor(), account=account)[1]


def requested(api: APIClient, alias: Alias, candidate: AdapterVersion) -> Approval:
    body = {"alias": alias.name, "candidate": candidate.served_name, "steps": [{"weight": 50}], "reason": "try"}
    answer = api.post("/api/v1/rollouts/", body)
    assert answer.status_code == 201, answer.content
    return Approval.objects.get(rollout=answer.json()["id"])


@contextmanager
def refused_as_author() -> Iterator[None]:
    with pytest.raises(NotAllowed, match="own change"), transaction.atomic():
        yield


def by_sql(approval: Approval, user: User) -> None:
    statement = (
        "INSERT INTO registry_signature (approval_id, author_id, user_id, name, decision, meaning, reason, bound, "
        "auth_method, at, person) VALUES (%s, %s, %s, 'x', 'approve', 'approved', '', %s, 'sql', now(), 'x')"
    )
    values = [approval.pk, approval.author_id, user.pk, approval.bound]
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)


@pytest.mark.threat("B7")
def test_the_maker_of_a_service_account_does_not_sign_what_it_asks(
    guarded: Alias, candidate: AdapterVersion, project: Project, dana: User
) -> None:
    """The attack: make a service account, ask with its token, sign with one's own account."""
    eve = member("eve", project, Membership.Role.ADMIN)
    _, text = robot(project, eve)
    approval = requested(bearer(text), guarded, candidate)
    with refused_as_author():
        approval.approve(reason="mine", by=eve.as_actor())
    by_sql(approval, eve)
    approval.approve(reason="another's", by=dana.as_actor())


@pytest.mark.threat("B7")
def test_an_account_is_handed_over_and_its_former_token_still_counts(
    guarded: Alias, candidate: AdapterVersion, project: Project, dana: User
) -> None:
    eve, frank = (member(name, project, Membership.Role.ADMIN) for name in ("eve", "frank"))
    account, text = robot(project, eve)
    person = APIClient()
    person.force_login(eve)
    path, body = f"/api/v1/projects/{project.slug}/service-accounts/hand-over/", {"name": "robot", "reason": "I leave"}
    assert person.post(path, {**body, "owner": "charlie"}).status_code == 422
    assert person.post(path, {**body, "owner": "frank"}).json()["owner"] == "frank"
    event = AuditEvent.objects.get(tag="user:service_account_handed_over")
    assert (event.before, event.after, event.reason) == ({"owner": "eve"}, {"owner": "frank"}, "I leave")
    User.objects.filter(pk=eve.pk).update(is_active=False)
    approval = requested(bearer(text), guarded, candidate)
    User.objects.filter(pk=eve.pk).update(is_active=True)
    for one in (eve, frank):
        with refused_as_author():
            approval.approve(reason="mine", by=one.as_actor())
    approval.approve(reason="another's", by=dana.as_actor())
    with pytest.raises(Invalid, match="not an active member"):
        service_accounts.hand_over(account, account, project, by=eve.as_actor(), reason="round")


@pytest.mark.threat("B7")
def test_who_edited_the_plan_does_not_sign_it(
    guarded: Alias, candidate: AdapterVersion, alice: User, dana: User, project: Project
) -> None:
    draft = Rollout.create(
        alias=guarded, candidate=candidate, steps=[{"weight": 1}], reason="try", by=alice.as_actor(), draft=True
    )
    draft.edit(steps=[{"weight": 90}], reason="more", by=dana.as_actor())
    draft.start(reason="go", by=alice.as_actor())
    with refused_as_author():
        draft.approvals.get().approve(reason="mine", by=dana.as_actor())


def shell(*arguments: str) -> str:
    out = StringIO()
    call_command("create_token", *arguments, stdout=out)
    return out.getvalue().strip()


@pytest.mark.threat("B7")
def test_a_token_of_the_shell_stands_for_a_person(
    guarded: Alias, candidate: AdapterVersion, project: Project, alice: User
) -> None:
    """The attack: a token without a person asks, and its holder signs."""
    eve = member("eve", project, Membership.Role.ADMIN)
    with pytest.raises(CommandError, match="--person"):
        shell("t", "--project", "eu", "--scope", "admin")
    with pytest.raises(CommandError, match="no such active person"):
        shell("t", "--project", "eu", "--scope", "admin", "--person", "nobody")
    text = shell("t", "--project", "eu", "--scope", "operate", "--scope", "read", "--person", "eve")
    approval = requested(bearer(text), guarded, candidate)
    with refused_as_author():
        approval.approve(reason="mine", by=eve.as_actor())
    approval.rollout.rollback(reason="next", by=alice.as_actor())
    nobody = ApiToken.issue(name="old", project=project, scopes=["read", "operate"])[1]
    body = {"alias": guarded.name, "candidate": candidate.served_name, "steps": [{"weight": 1}], "reason": "try"}
    answer = bearer(nobody).post("/api/v1/rollouts/", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "person_missing")
    assert Rollout.objects.count() == 1


@pytest.mark.threat("B8")
def test_an_admin_token_of_the_shell_mints_no_admin_tokens_alone(project: Project, alice: User) -> None:
    """The attack: tokens of `manage.py` made further tokens of scope admin, which worked at once."""
    text = shell("root", "--project", "eu", "--scope", "admin", "--scope", "read")
    wanted = {"project": "eu", "name": "more", "scopes": ["admin"], "reason": "more power"}
    minted = bearer(text).post("/api/v1/tokens/", wanted).json()
    assert minted["needs_approval"] is True
    assert bearer(minted["token"]).get("/api/v1/tokens/").status_code == 401
    with pytest.raises(NotAllowed, match="own change"):
        tokens.approve(ApiToken.objects.get(name="more"), reason="mine", by=alice.as_actor())
    nobody = ApiToken.issue(name="old", project=project, scopes=["admin"])[1]
    refused = bearer(nobody).post("/api/v1/tokens/", wanted)
    assert (refused.status_code, refused.json()["code"]) == (422, "person_missing")


SECOND = [
    "eve+2@example.org",
    " eve@example.org ",
    "EVE@Example.ORG",
    "eve\u200b@example.org",
    "\uff45ve@example.org",
    "eve+a+b@example.org.",
    '"eve"@example.org',
    r'"e\ve+3"@example.org',
]
# One letter is Cyrillic, or combines with the one before it: another text, and perhaps the same mailbox.
NO_FORM = [
    "",
    "eve",
    "@example.org",
    "\u0435ve@example.org",
    "eve\u0301@example.org",
    "eve@ex\u0430mple.org",
    "eve@b\u00fccher.example",
]


@pytest.mark.threat("B7")
@pytest.mark.parametrize("address", [*SECOND, *NO_FORM])
def test_a_second_account_with_the_same_or_no_address_does_not_sign(
    guarded: Alias, candidate: AdapterVersion, project: Project, address: str
) -> None:
    eve = member("eve", project, Membership.Role.OPERATOR)
    other = member("other", project, Membership.Role.APPROVER)
    User.objects.filter(pk=other.pk).update(email=address)
    rollout = Rollout.create(alias=guarded, candidate=candidate, steps=[{"weight": 1}], reason="try", by=eve.as_actor())
    approval = rollout.approvals.get()
    with pytest.raises(NotAllowed) as refusal:
        approval.approve(reason="mine", by=User.objects.get(pk=other.pk).as_actor())
    assert refusal.value.code == ("own_request" if address in SECOND else "email_missing")
    by_sql(approval, other)


@pytest.mark.threat("B7")
def test_two_accounts_of_one_address_are_one_signature(
    alias: Alias, candidate: AdapterVersion, project: Project, dana: User, alice: User
) -> None:
    alias.set_policy({"quorum": 2}, by=alice.as_actor())
    second = member("dana2", project, Membership.Role.APPROVER)
    User.objects.filter(pk=second.pk).update(email="Dana+2@example.org")
    approval = Rollout.create(
        alias=alias, candidate=candidate, steps=[{"weight": 1}], reason="try", by=alice.as_actor()
    ).approvals.get()
    approval.approve(reason="one", by=dana.as_actor())
    with pytest.raises(Conflict, match="already signed this"):
        approval.approve(reason="two", by=User.objects.get(pk=second.pk).as_actor())
    by_sql(approval, second)
    assert Approval.objects.get().status == "pending"


def test_different_people_have_different_keys(project: Project, dana: User, alice: User) -> None:
    assert mail_keys([dana, alice]) == {"dana@example.org", "alice@example.org"}


def test_an_account_without_an_owner_asks_for_nothing(
    guarded: Alias, candidate: AdapterVersion, project: Project, alice: User
) -> None:
    account = User.objects.create(username="orphan", is_service=True, password="!")
    Membership.objects.create(project=project, user=account, role=Membership.Role.OPERATOR)
    text = ApiToken.issue(name="o", project=project, scopes=["read", "operate"], account=account)[1]
    body = {"alias": guarded.name, "candidate": candidate.served_name, "steps": [{"weight": 1}], "reason": "try"}
    assert bearer(text).post("/api/v1/rollouts/", body).json()["code"] == "person_missing"
    service_accounts.hand_over(account, alice, project, by=alice.as_actor(), reason="found")
    assert bearer(text).post("/api/v1/rollouts/", body).status_code == 201
