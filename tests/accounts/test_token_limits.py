"""Limits of an API token at the routers: set, changed and removed by REST, page and command; recorded and published."""

from __future__ import annotations

import math
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.test import Client

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.audit.models import AuditEvent
from registry.serving.routing_table import routing_table
from serving_client import RoutingTable, Share
from tests.builders.people import member

BODY = {"project": "eu", "name": "app", "scopes": ["infer"]}


@pytest.fixture
def lead(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def created(client: Client, **fields: Any) -> Any:
    return client.post("/api/v1/tokens/", {**BODY, **fields}, content_type="application/json")


def changed(client: Client, token: ApiToken, **fields: Any) -> Any:
    return client.patch(f"/api/v1/tokens/{token.pk}/", {"reason": "busy", **fields}, content_type="application/json")


def routed(token: ApiToken) -> Share | None:
    """Return the limits as routers read them."""
    return RoutingTable.from_json(routing_table().to_json()).tokens[token.pk].limits


def test_limits_are_set_changed_removed_and_recorded(lead: Client) -> None:
    answer = created(lead, requests_per_s=2.5, tokens_per_min=600)
    assert (answer.status_code, answer.json()["requests_per_s"], answer.json()["tokens_per_min"]) == (201, 2.5, 600)
    token = ApiToken.objects.get()
    assert routed(token) == Share(2.5, 600.0)
    assert changed(lead, token, requests_per_s=4).json()["requests_per_s"] == 4
    assert routed(token) == Share(4.0, 600.0), "what is not named stays"
    assert changed(lead, token, requests_per_s=None, tokens_per_min=None).status_code == 200
    assert routed(token) is None
    first, second, third = AuditEvent.objects.filter(object_type="apitoken").order_by("pk")
    assert (first.tag, second.tag, second.reason) == ("token:created", "token:changed", "busy")
    assert first.after["requests_per_s"] == 2.5
    assert (second.before, second.after) == (
        {"requests_per_s": 2.5, "tokens_per_min": 600},
        {"requests_per_s": 4.0, "tokens_per_min": 600},
    )
    assert third.after == {"requests_per_s": None, "tokens_per_min": None}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"requests_per_s": 0}, "requests_per_s"),
        ({"requests_per_s": "NaN"}, "requests_per_s"),
        ({"tokens_per_min": -1}, "tokens_per_min"),
        ({"tokens_per_min": 2**31}, "tokens_per_min"),
        ({"tokens_per_min": 60, "scopes": ["read"]}, "tokens_per_min"),
    ],
)
def test_a_limit_that_could_not_hold_is_refused_by_name(lead: Client, fields: dict[str, Any], field: str) -> None:
    answer = created(lead, **fields)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert not ApiToken.objects.exists()


def test_a_token_that_nobody_can_use_or_that_was_signed_keeps_its_limits(lead: Client, project: Project) -> None:
    signed = ApiToken.issue(project=project, name="root", scopes=["admin", "infer"])[0]
    assert (changed(lead, signed, requests_per_s=1).status_code, routed(signed)) == (409, None)
    created(lead)
    token = ApiToken.objects.get(name="app")
    assert changed(lead, token, requests_per_s=1, reason="").status_code == 422, "it needs a reason"
    lead.post(f"/api/v1/tokens/{token.pk}/revoke/")
    assert changed(lead, token, requests_per_s=1).status_code == 409
    with pytest.raises(IntegrityError), transaction.atomic():
        ApiToken.objects.update(requests_per_s=0)


def test_only_an_admin_of_the_project_changes_limits(lead: Client, project: Project, charlie: User) -> None:
    created(lead)
    token, other = ApiToken.objects.get(), Client()
    other.force_login(charlie)
    assert changed(other, token, requests_per_s=1).status_code == 404
    other.force_login(member("op", project, Membership.Role.OPERATOR))
    assert changed(other, token, requests_per_s=1).status_code == 403
    assert other.post(f"/tokens/{token.pk}/limit/", {"requests_per_s": 1, "reason": "x"}).status_code == 404
    assert routed(token) is None


def test_the_pages_set_and_change_limits(lead: Client) -> None:
    form = {**BODY, "days": 3, "requests_per_s": 2, "tokens_per_min": ""}
    assert "at most 2 requests a second" in text_of(lead.post("/tokens/", form))
    token = ApiToken.objects.get()
    assert (token.requests_per_s, token.tokens_per_min) == (2, None)
    path = f"/tokens/{token.pk}/"
    refused = lead.post(f"{path}limit/", {"requests_per_s": "", "tokens_per_min": 0, "reason": "x"})
    assert (refused.status_code, "greater than or equal to 1" in text_of(refused)) == (422, True)
    assert lead.post(f"{path}limit/", {"requests_per_s": "", "tokens_per_min": 6000, "reason": "x"}).status_code == 302
    assert routed(token) == Share(None, 6000.0)
    page = text_of(lead.get(path))
    assert ("6,000 tokens a minute" in page, "Change the limits" in page) == (True, True)


def text_of(answer: Any) -> str:
    return " ".join(answer.content.decode().split())


def test_the_servers_command_sets_limits(project: Project) -> None:
    call_command("create_token", "app", project="eu", scope=["infer"], requests_per_s=1.5, tokens_per_min=60)
    token = ApiToken.objects.get()
    assert (token.requests_per_s, token.tokens_per_min) == (1.5, 60)
    for limit in ({"tokens_per_min": 0}, {"tokens_per_min": 2**31}, {"requests_per_s": math.nan}):
        with pytest.raises(CommandError, match=f"{next(iter(limit))} lies above 0"):
            call_command("create_token", "app", project="eu", scope=["infer"], **limit)
