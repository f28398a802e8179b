"""A token of scope admin works when another person approved it; a service account's token does what its roles grant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import IntegrityError, connection, transaction
from django.test import Client
from rest_framework.test import APIClient

from adapterhub.accounts import memberships, service_accounts, tokens
from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Conflict, Invalid, NotAllowed
from registry.models import AdapterVersion, Alias, Approval, BaseModel, Rollout
from registry.serving.reconciler import RECONCILER
from tests.builders import member
from tests.builders.tokens import infer_tokens


@pytest.fixture
def dana(project: Project) -> User:
    return member("dana", project, Membership.Role.APPROVER)


@pytest.fixture
def high(project: Project, alice: User) -> tuple[ApiToken, str]:
    return tokens.create(project, "terraform", ["admin", "read"], by=alice.as_actor(), reason="It keeps the members.")


def status_with(text: str) -> int:
    return Client().get("/api/v1/adapters/", headers={"Authorization": f"Bearer {text}"}).status_code


def by_page(token: ApiToken, author: User) -> None:
    client = Client()
    client.force_login(author)
    answer = client.post(f"/tokens/{token.pk}/", {"reason": "mine", "meaning": "approved"})
    if answer.status_code == 403:
        raise NotAllowed("refused")


def by_rest(token: ApiToken, author: User) -> None:
    api = APIClient()
    api.force_login(author)
    if api.post(f"/api/v1/tokens/{token.pk}/approve/", {"reason": "mine"}).json().get("code") == "own_request":
        raise NotAllowed("refused")


def by_model(token: ApiToken, author: User) -> None:
    tokens.approve(token, reason="mine", by=author.as_actor())


def by_second_account(token: ApiToken, author: User) -> None:
    other = member("alice2", token.project, Membership.Role.APPROVER)
    User.objects.filter(pk__in=[other.pk, author.pk]).update(email="alice@example.org")
    tokens.approve(ApiToken.objects.get(), reason="me again", by=User.objects.get(pk=other.pk).as_actor())


def by_sql(token: ApiToken, author: User) -> None:
    statement = "UPDATE accounts_apitoken SET approved_by_id = %s, approved_at = now() WHERE id = %s"
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, [author.pk, token.pk])


@pytest.mark.threat("B3")
@pytest.mark.parametrize("door", [by_page, by_rest, by_model, by_second_account, by_sql])
def test_its_author_cannot_approve_it(
    high: tuple[ApiToken, str], alice: User, door: Callable[[ApiToken, User], None]
) -> None:
    with pytest.raises((NotAllowed, IntegrityError)):
        door(high[0], alice)
    assert ApiToken.objects.get().is_waiting
    assert status_with(high[1]) == 401


def test_another_person_approves_and_it_works(high: tuple[ApiToken, str], dana: User, client: Client) -> None:
    token, text = high
    client.force_login(dana)
    assert f"/tokens/{token.pk}/" in client.get("/approvals/").content.decode()
    assert b"It keeps the members." in client.get(f"/tokens/{token.pk}/").content
    assert client.post(f"/tokens/{token.pk}/", {"reason": "needed", "meaning": "reviewed"}).status_code == 302
    assert status_with(text) == 200
    event = AuditEvent.objects.get(tag="token:approved")
    assert (event.actor_name, event.reason, event.after) == ("dana", "needed", {"meaning": "reviewed"})
    assert event.evidence["scopes"] == ["admin", "read"]
    with pytest.raises(Conflict, match="is not waiting"):
        tokens.approve(token, reason="again", by=dana.as_actor())


def test_a_signature_needs_its_person(high: tuple[ApiToken, str], dana: User) -> None:
    api = APIClient()
    api.force_login(dana)
    session = api.session
    session["signed_in_at"] = 0
    session.save()
    answer = api.post(f"/api/v1/tokens/{high[0].pk}/approve/", {"reason": "x"})
    assert answer.json()["code"] == "reauthentication_required"


def test_a_token_cannot_approve_a_token(high: tuple[ApiToken, str], ci: str) -> None:
    api = APIClient(headers={"Authorization": f"Bearer {ci}"})
    assert api.post(f"/api/v1/tokens/{high[0].pk}/approve/", {"reason": "bot"}).status_code == 403


@pytest.mark.threat("B3")
def test_a_token_that_operates_moves_nothing_that_is_protected(
    alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    """Why scope operate needs no approval of its own: each of its acts on a protected alias waits for a person."""
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    scopes = ["read", "publish", "operate", "infer"]
    text = tokens.create(alias.project, "deploy", scopes, by=alice.as_actor())[1]
    api = APIClient(headers={"Authorization": f"Bearer {text}"})
    served, wanted = alias.version.served_name, candidate.served_name
    move = {"version": wanted, "expected_version": served, "reason": "deploy"}
    refused = [api.post(f"/api/v1/aliases/{alias.name}/move/", move)]
    steps = {"alias": alias.name, "candidate": wanted, "steps": [{"weight": 50}], "reason": "deploy"}
    rollout = api.post("/api/v1/rollouts/", steps).json()["id"]
    with pytest.raises(NotAllowed, match="approval"):
        Rollout.objects.get(pk=rollout).started(by=RECONCILER)
    promotion = {"reason": "deploy", "expected_generation": Rollout.objects.get(pk=rollout).generation}
    glass = f"/api/v1/approvals/{Approval.objects.get(rollout=rollout).pk}/break-glass/"
    refused += [
        api.patch(f"/api/v1/aliases/{alias.name}/", {"policy": {"quorum": 0}}),
        api.post(f"/api/v1/rollouts/{rollout}/promote/", promotion),
        api.post(glass, {"reason": "mine"}),
    ]
    assert [answer.status_code for answer in refused] == [403, 403, 409, 403], [answer.json() for answer in refused]
    alias.refresh_from_db()
    assert (alias.version.served_name, alias.policy) == (served, {"quorum": 1})


def test_it_needs_a_reason(project: Project, alice: User, client: Client) -> None:
    client.force_login(alice)
    form = {"project": "eu", "name": "t", "scopes": ["admin"], "days": 3}
    page = client.post("/tokens/", form)
    assert (page.status_code, b"needs a reason" in page.content) == (422, True)
    with pytest.raises(Invalid, match="reason"):
        tokens.create(project, "t", ["admin"], by=alice.as_actor())
    assert not ApiToken.objects.exists()


def test_a_person_who_left_leaves_no_working_token(project: Project, alice: User) -> None:
    text = tokens.create(project, "mine", ["read", "infer"], by=alice.as_actor())[1]
    assert (status_with(text), len(infer_tokens())) == (200, 1)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert (status_with(text), infer_tokens()) == (401, [])


def test_a_service_account_outlives_its_maker_and_does_what_its_roles_grant(
    project: Project, alice: User, base_model: BaseModel
) -> None:
    robot = service_accounts.create(project, "robot", "trainer", by=alice.as_actor())
    with pytest.raises(Invalid, match="eu/robot has no role here with operate"):
        tokens.create(project, "t", ["operate"], by=alice.as_actor(), account=robot)
    text = tokens.create(project, "t", ["read", "publish", "infer"], by=alice.as_actor(), account=robot)[1]
    User.objects.filter(pk=alice.pk).update(is_active=False)
    api = APIClient(headers={"Authorization": f"Bearer {text}"})
    assert (status_with(text), len(infer_tokens())) == (200, 1)
    assert api.post("/api/v1/adapters/", {"project": "eu", "slug": "x", "base_model": "tiny"}).status_code == 201
    memberships.grant(project, robot, "viewer", by=alice.as_actor())
    memberships.revoke(robot.memberships.get(role="trainer"), by=alice.as_actor())
    assert (status_with(text), infer_tokens()) == (200, [])
    assert api.post("/api/v1/adapters/", {"project": "eu", "slug": "y", "base_model": "tiny"}).status_code == 403
    service_accounts.close(robot, project, by=alice.as_actor())
    assert status_with(text) == 401
    assert not User.objects.get(username="eu/robot").is_active


def test_what_it_does_stands_in_its_name(project: Project, alice: User) -> None:
    robot = service_accounts.create(project, "robot", "trainer", by=alice.as_actor())
    token = tokens.create(project, "nightly", ["train"], by=alice.as_actor(), account=robot)[0]
    actor = token.as_actor()
    assert (actor.user, actor.name, actor.token_id) == (robot, "eu/robot", token.pk)


def test_a_service_account_never_signs_in(project: Project, alice: User) -> None:
    robot = service_accounts.create(project, "robot", "viewer", by=alice.as_actor())
    robot.set_password("a-long-enough-password")
    with pytest.raises(IntegrityError, match="a_service_account_has_no_password"), transaction.atomic():
        robot.save()


def test_it_is_made_and_closed_on_the_page_and_by_rest(project: Project, alice: User, client: Client) -> None:
    client.force_login(alice)
    client.post("/tokens/accounts/", {"project": "eu", "name": "robot", "role": "trainer"})
    page = client.post("/tokens/", {"project": "eu", "name": "t", "scopes": ["read"], "days": 3, "account": "eu/robot"})
    assert b"as eu/robot" in page.content
    assert client.post("/tokens/accounts/eu/eu/robot/close/").status_code == 422
    client.post("/tokens/accounts/eu/eu/robot/close/", {"reason": "The nightly job is gone."})
    assert ApiToken.objects.get().revoked_at is not None
    api = APIClient()
    api.force_login(alice)
    created = api.post("/api/v1/service-accounts/", {"project": "eu", "name": "bot", "role": "operator"})
    assert created.json() == {"name": "eu/bot", "owner": "alice", "roles": [{"project": "eu", "role": "operator"}]}
    assert api.post("/api/v1/service-accounts/", {"project": "eu", "name": "bot", "role": "viewer"}).status_code == 409
    assert api.post("/api/v1/service-accounts/", {"project": "eu", "name": "boss", "role": "admin"}).status_code == 422
    listed = api.get("/api/v1/service-accounts/").json()["results"]
    assert [one["name"] for one in listed] == ["eu/bot"]
    assert api.post("/api/v1/projects/eu/service-accounts/close/", {"name": "bot"}).status_code == 204
    assert api.get("/api/v1/service-accounts/").json()["results"] == []
