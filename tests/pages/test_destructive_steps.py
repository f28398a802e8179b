"""What cannot be undone asks why and says what it does; the trail keeps the reason, by the page and by REST."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now
from rest_framework.test import APIClient

from adapterhub.accounts import memberships, service_accounts, tokens
from adapterhub.accounts.models import Project, SignIn, User
from adapterhub.audit.models import AuditEvent
from adapterhub.webhooks.models import Webhook
from registry.models import Adapter, AdapterVersion
from tests.builders.people import app_code
from training.models import Compression, Dataset, RankAnalysis, TrainingRun
from training.runs.launch import launch_run

WHY = "The data was wrong."


@pytest.fixture
def world(
    project: Project, adapter: Adapter, version: AdapterVersion, dataset: Dataset, alice: User, client: Client
) -> dict[str, Any]:
    """A thing for each destructive verb; alice is signed in, and her phone too."""
    client.force_login(alice)
    Client().force_login(alice)
    by = alice.as_actor()
    plan = {"budget": {"uniform_rank": 4}, "rank_max": 8, "quantum": 2}
    return {
        "run": launch_run(adapter=adapter, dataset=dataset, anyway=True, by=by),
        "analysis": RankAnalysis.launch(project=project, base_model=adapter.base_model, dataset=dataset, by=by, **plan),
        "compression": Compression.launch(version, {"uniform_rank": 2}, by=by),
        "account": service_accounts.create(project, "robot", "trainer", by=by),
        "token": tokens.create(project, "ci", ["read"], by=by)[0],
        "webhook": Webhook.objects.create(project=project, url="https://h.example/", events=["alias:*"]),
        "session": SignIn.objects.exclude(session_key=client.session.session_key).get(user=alice),
    }


# The page that offers the verb, and the verb: routes with what they take.
PAGES = {
    "run": lambda thing: (("training-run", thing.pk), ("move-training-run", thing.pk, "cancel")),
    "analysis": lambda thing: (("rank-analysis", thing.pk), ("cancel-rank-analysis", thing.pk)),
    "compression": lambda thing: (("compression", thing.pk), ("cancel-compression", thing.pk)),
    "account": lambda _: (("service-accounts",), ("close-service-account", "eu", "eu/robot")),
    "token": lambda thing: (("tokens",), ("revoke-token", thing.pk)),
    "webhook": lambda thing: (("webhooks",), ("revoke-webhook", thing.pk)),
    "session": lambda _: (("sessions",), ("sessions",)),
}
TAGS = {
    "run": "training_run:cancelled",
    "analysis": "rank_analysis:cancelled",
    "compression": "compression:cancelled",
    "account": "user:service_account_closed",
    "token": "token:revoked",
    "webhook": "webhook:revoked",
    "session": "session:revoked",
}
CONSEQUENCES = {
    "run": "Its last checkpoint is kept",
    "analysis": "stops without a plan",
    "compression": "No smaller version",
    "account": "cannot be undone",
    "token": "refused at once",
    "webhook": "Nothing more is delivered",
    "session": "has to sign in again",
}


@pytest.mark.parametrize("kind", PAGES)
def test_the_page_asks_why_and_says_what_follows(world: dict[str, Any], kind: str, client: Client) -> None:
    page, verb = (reverse(name, args=args) for name, *args in PAGES[kind](world[kind]))
    html = client.get(page).content.decode()
    assert CONSEQUENCES[kind] in html
    assert 'name="reason"' in html
    fields = {"end": world[kind].pk} if kind == "session" else {}
    assert client.post(verb, fields).status_code == 422
    assert not AuditEvent.objects.filter(tag=TAGS[kind]).exists()
    client.post(verb, {**fields, "reason": WHY})
    assert {event.reason for event in AuditEvent.objects.filter(tag=TAGS[kind])} == {WHY}


REST = {
    "run": lambda thing: (f"training-runs/{thing.pk}/cancel/", {}),
    "analysis": lambda thing: (f"rank-analyses/{thing.pk}/cancel/", {}),
    "compression": lambda thing: (f"compressions/{thing.pk}/cancel/", {}),
    "account": lambda _: ("projects/eu/service-accounts/close/", {"name": "robot"}),
    "token": lambda thing: (f"tokens/{thing.pk}/revoke/", {}),
    "webhook": lambda thing: (f"webhooks/{thing.pk}/revoke/", {}),
}


@pytest.mark.parametrize("reason", [{}, {"reason": WHY}], ids=["without", "with"])
@pytest.mark.parametrize("kind", REST)
def test_rest_takes_a_reason_and_asks_for_none(
    world: dict[str, Any], kind: str, reason: dict[str, str], alice: User
) -> None:
    api = APIClient()
    api.force_login(alice)
    path, body = REST[kind](world[kind])
    assert api.post(f"/api/v1/{path}", {**body, **reason}, format="json").status_code in (200, 204)
    [event] = AuditEvent.objects.filter(tag=TAGS[kind])
    assert event.reason == reason.get("reason", "")


def test_a_role_is_taken_with_a_reason(project: Project, bob: User, alice: User) -> None:
    api = APIClient()
    api.force_login(alice)
    body = {"user": "bob", "role": "viewer", "reason": WHY}
    assert api.post("/api/v1/projects/eu/members/revoke/", body, format="json").status_code == 204
    assert AuditEvent.objects.get(tag="membership:revoked").reason == WHY
    memberships.grant(project, bob, "viewer", by=alice.as_actor())


def test_who_stops_a_running_run_is_in_the_trail_once(world: dict[str, Any], alice: User, client: Client) -> None:
    run = world["run"]
    TrainingRun.objects.filter(pk=run.pk).update(status="running", lease_expires_at=now())
    for _ in range(2):
        client.post(reverse("move-training-run", args=[run.pk, "cancel"]), {"reason": WHY})
    [event] = AuditEvent.objects.filter(tag="training_run:cancel_requested")
    assert (event.actor_name, event.reason, event.after["status"]) == ("alice", WHY, "stopping")


def test_a_second_factor_is_not_taken_away_without_a_reason(alice: User, client: Client) -> None:
    from adapterhub.accounts import second_factor
    from adapterhub.accounts.models import SecondFactor

    secret = second_factor.new_secret()
    second_factor.enable(alice, secret, app_code(secret, -1), by=alice.as_actor())
    client.force_login(alice)
    assert "your password alone signs you in" in client.get(reverse("second-factor")).content.decode()
    typed = {"code": app_code(secret), "password": "alice-long-password"}
    assert client.post(reverse("second-factor"), typed).status_code == 422
    assert SecondFactor.objects.exists()
    assert client.post(reverse("second-factor"), {**typed, "reason": WHY}).status_code == 302
    assert AuditEvent.objects.get(tag="user:mfa_removed").reason == WHY
