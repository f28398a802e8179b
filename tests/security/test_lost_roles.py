"""Roles that were lost: the tokens that a person made before do no more than the person may do now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, connections
from django.test import AsyncClient, Client
from django.urls import reverse
from rest_framework.test import APIClient

from adapterhub.accounts import memberships, tokens
from adapterhub.accounts.models import ApiToken, Membership, Project, SignIn, User
from adapterhub.accounts.sessions import end
from adapterhub.core.errors import TooMany
from registry.models import Adapter, BaseModel
from tests.builders import member
from tests.builders.tokens import infer_tokens
from training.api import events
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run

SCOPES = ["read", "train", "publish", "operate", "infer", "audit"]
NEW = {"project": "eu", "slug": "x", "base_model": "tiny"}


@pytest.fixture
def dana(project: Project) -> User:
    """A colleague with two roles."""
    dana = member("dana", project, Membership.Role.OPERATOR)
    for role in ("trainer", "auditor"):
        Membership.objects.create(project=project, user=dana, role=role)
    return dana


@pytest.fixture
def text(project: Project, dana: User) -> str:
    """A token with all that Dana's roles grant."""
    return tokens.create(project, "mine", SCOPES, by=dana.as_actor())[1]


def lose(user: User, *roles: str) -> None:
    for membership in user.memberships.filter(role__in=roles).select_related("project", "user"):
        memberships.revoke(membership, by=user.as_actor())


def api_with(text: str) -> APIClient:
    return APIClient(headers={"Authorization": f"Bearer {text}"})


@pytest.mark.threat("C11")
def test_a_token_loses_what_its_maker_loses(base_model: BaseModel, dana: User, text: str, adapter: Adapter) -> None:
    api = api_with(text)
    assert api.post("/api/v1/adapters/", NEW).status_code == 201
    assert len(infer_tokens()) == 1
    lose(dana, "trainer", "operator")
    assert api.post("/api/v1/adapters/", {**NEW, "slug": "y"}).status_code == 403
    assert api.get("/api/v1/audit/events/?project=eu").status_code == 200
    assert infer_tokens() == []
    lose(dana, "auditor")
    assert api.get("/api/v1/adapters/").json()["results"] == []
    assert api.get("/api/v1/projects/").json()["results"] == []
    assert api.get(f"/api/v1/adapters/{adapter.slug}/").status_code == 404
    assert api.get("/api/v1/audit/events/?project=eu").json().get("results", []) == []


def test_an_answer_that_a_release_before_kept_is_repeated_to_nobody(base_model: BaseModel, ci: str) -> None:
    """That release does not know the column for what its caller needed: the database's default is a role of nobody."""
    api, header = api_with(ci), {"Idempotency-Key": "once"}
    assert api.post("/api/v1/adapters/", NEW, headers=header).status_code == 201
    assert api.post("/api/v1/adapters/", NEW, headers=header)["Idempotency-Replayed"] == "true"
    with connection.cursor() as cursor:
        cursor.execute("UPDATE api_idempotentrequest SET used_scopes = DEFAULT")
    refused = api.post("/api/v1/adapters/", NEW, headers=header)
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")


@pytest.mark.threat("C11")
def test_what_the_role_never_granted_is_no_power_of_a_token(project: Project, bob: User, base_model: BaseModel) -> None:
    """A row of the database that says more than its owner's roles grants no more than those."""
    text = ApiToken.issue(name="old", project=project, scopes=[*SCOPES, "admin"], created_by=bob)[1]
    api = api_with(text)
    assert api.get("/api/v1/adapters/").status_code == 200
    assert api.post("/api/v1/adapters/", NEW).status_code == 403
    member = {"user": "bob", "role": "admin"}
    assert api.post("/api/v1/projects/eu/members/", member).status_code == 403


def test_nobody_makes_a_token_beyond_their_roles_on_any_page(project: Project, dana: User, client: Client) -> None:
    with pytest.raises(tokens.Invalid, match="dana has no role here with admin"):
        tokens.create(project, "t", ["admin"], by=dana.as_actor(), reason="more")


def by_revocation(run: TrainingRun, dana: User) -> None:
    for token in ApiToken.objects.all():
        tokens.revoke(token, by=dana.as_actor(), reason="stolen")


def by_lost_role(run: TrainingRun, dana: User) -> None:
    lose(dana, "trainer", "operator", "auditor")


def by_ended_session(run: TrainingRun, dana: User) -> None:
    end(SignIn.objects.get(user=dana), by=dana.as_actor())


def by_new_password(run: TrainingRun, dana: User) -> None:
    dana.set_password("another-long-password")
    dana.save()


def by_closed_account(run: TrainingRun, dana: User) -> None:
    User.objects.filter(pk=dana.pk).update(is_active=False)


def from_elsewhere(act: Callable[[TrainingRun, User], None], run: TrainingRun, dana: User) -> None:
    """Act in a thread of its own, and leave no connection behind."""
    try:
        act(run, dana)
    finally:
        connections.close_all()


async def heard_until_its_end(
    client: AsyncClient, url: str, headers: dict[str, str], act: Callable[[], None]
) -> list[bytes]:
    answer = await client.get(url, headers={"Accept": "text/event-stream", **headers})
    assert answer["Content-Type"].startswith("text/event-stream")
    parts: list[bytes] = []
    async for part in answer.streaming_content:
        if not parts:
            await asyncio.to_thread(act)
        parts.append(part)
    return parts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("act", "by_token"),
    [
        (by_revocation, True),
        (by_lost_role, True),
        (by_lost_role, False),
        (by_ended_session, False),
        (by_new_password, False),
        (by_closed_account, False),
    ],
)
@pytest.mark.threat("C11")
def test_an_event_stream_ends_with_the_power_to_hear_it(
    fresh_database: str,
    dataset: Dataset,
    adapter: Adapter,
    dana: User,
    text: str,
    act: Callable[[TrainingRun, User], None],
    by_token: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training.api.events.POLL_S", 0.01)
    run = launch_run(adapter=adapter, dataset=dataset, by=dana.as_actor())
    url = reverse("api:training-run-events", args=[run.pk])

    async def hear() -> list[Any]:
        client = AsyncClient()
        headers = {"Authorization": f"Bearer {text}"} if by_token else {}
        if not by_token:
            await client.aforce_login(dana)
        hearing = heard_until_its_end(client, url, headers, lambda: from_elsewhere(act, run, dana))
        return await asyncio.wait_for(hearing, 20)

    parts = asyncio.run(hear())
    assert len(parts) == 1, parts
    assert b'"status": "queued"' in parts[0]


@pytest.mark.threat("D35")
async def test_one_caller_has_a_few_event_streams_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks the database every second, for as long as it is open."""
    monkeypatch.setattr(events, "MOST_OF_ONE", 1)
    state = {"after": 0, "log_from": 0, "status": "running", "progress": {}, "message": "", "metrics": [], "log": ""}
    monkeypatch.setattr(events, "snapshot_once", lambda *_: {**state, "ended": False})
    run = TrainingRun()
    first: Any = aiter(events.stream_of(run, (0, 0), lambda: True, "token:a"))
    assert "running" in (await anext(first)).decode()
    with pytest.raises(TooMany):
        events.stream_of(run, (0, 0), lambda: True, "token:a")
    events.stream_of(run, (0, 0), lambda: True, "token:b")
    await first.aclose()
    async with asyncio.timeout(5):
        while events.open_streams:
            await asyncio.sleep(0.01)
    events.stream_of(run, (0, 0), lambda: True, "token:a")
