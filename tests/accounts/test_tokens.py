"""Tokens: shown once, listed with their last use, expiring, revocable; a role's grants and withdrawals."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils.timezone import now

from adapterhub.accounts import memberships
from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_a_token_of_the_page_is_shown_once_used_and_revoked(alice: User, client: Client) -> None:
    client.force_login(alice)
    form = {"project": "eu", "name": "pipeline", "scopes": ["read"], "days": 30}
    answer = client.post("/tokens/", form)
    (text,) = re.findall(r"ah_[a-z0-9]{12}_[\w-]{40,}", answer.content.decode())
    assert answer["Cache-Control"] == "no-store"
    assert text not in client.get("/tokens/").content.decode()
    assert Client().get("/api/v1/adapters/", headers=bearer(text)).status_code == 200
    token = ApiToken.objects.get()
    assert token.last_used_at is not None
    assert text.split("_", 2)[2] not in str(vars(token))
    client.post(f"/tokens/{token.pk}/revoke/", {"reason": "done"})
    assert Client().get("/api/v1/adapters/", headers=bearer(text)).status_code == 401
    tags = AuditEvent.objects.filter(object_type="apitoken").order_by("id").values_list("tag", flat=True)
    assert [*tags] == ["token:created", "token:revoked"]


def test_the_last_use_is_kept_to_the_minute(ci: str) -> None:
    def used(ago: timedelta | None) -> datetime | None:
        ApiToken.objects.update(last_used_at=ago and now() - ago)
        assert Client().get("/api/v1/adapters/", headers=bearer(ci)).status_code == 200
        return ApiToken.objects.get().last_used_at

    assert (first := used(None)) is not None
    assert (later := used(timedelta(minutes=2))) is not None
    assert later > first, "an old time is replaced"
    assert (unchanged := used(timedelta(seconds=30))) is not None
    assert now() - unchanged > timedelta(seconds=29), "a recent one is not written again"


def test_a_token_ends_by_itself(alice: User, client: Client) -> None:
    client.force_login(alice)
    body = {"project": "eu", "name": "t", "scopes": ["read"]}
    text = client.post("/api/v1/tokens/", body, content_type="application/json").json()["token"]
    token = ApiToken.objects.get()
    assert timedelta(days=89) < token.expires_at - now() <= timedelta(days=90)
    ApiToken.objects.update(expires_at=now())
    assert Client().get("/api/v1/adapters/", headers=bearer(text)).status_code == 401


@pytest.mark.parametrize("days", [-1, 400])
def test_a_life_that_is_over_or_too_long_is_refused(alice: User, client: Client, days: int) -> None:
    client.force_login(alice)
    body = {"project": "eu", "name": "t", "scopes": ["read"], "expires_at": (now() + timedelta(days=days)).isoformat()}
    answer = client.post("/api/v1/tokens/", body, content_type="application/json")
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "expires_at")
    with pytest.raises(CommandError, match="--days"):
        call_command("create_token", "t", project="eu", scope=["read"], days=days)
    assert not ApiToken.objects.exists()


def test_a_role_is_taken_back_and_the_trail_says_who_had_it(alice: User, bob: User, client: Client) -> None:
    client.force_login(alice)
    role = {"user": "bob", "role": "operator"}
    client.post("/api/v1/projects/eu/members/", role, content_type="application/json")
    between = now()
    revoked = client.post("/api/v1/projects/eu/members/revoke/", role, content_type="application/json")
    again = client.post("/api/v1/projects/eu/members/revoke/", role, content_type="application/json")
    assert (revoked.status_code, again.status_code) == (204, 422)
    project = Project.objects.get(slug="eu")
    assert [(one.user, one.role, one.by) for one in memberships.roles_at(project, between)] == [
        ("bob", "operator", "alice")
    ]
    assert memberships.roles_at(project, now()) == []
    page = client.get("/audit/roles/").content.decode()
    assert "operator" in page


@pytest.mark.parametrize("owner", ["nobody", "maker", "account"])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize(
    "fields",
    [{}, {"revoked": True}, {"over": True}, {"later": True}, {"waits": True}, {"waits": True, "approved": True}],
    ids=str,
)
def test_one_token_is_usable_when_the_query_finds_it(
    alice: User, project: Project, owner: str, there: bool, fields: dict[str, bool]
) -> None:
    User.objects.filter(pk=alice.pk).update(is_active=there)
    token = ApiToken.issue(
        name="t",
        project=project,
        scopes=["read"],
        created_by=alice if owner == "maker" else None,
        account=alice if owner == "account" else None,
        revoked_at=now() if "revoked" in fields else None,
        expires_at=now() + timedelta(days=1 if "later" in fields else -1) if {"over", "later"} & {*fields} else None,
        needs_approval="waits" in fields,
        approved_at=now() if "approved" in fields else None,
    )[0]
    known = ApiToken.objects.get(pk=token.pk)
    assert known.is_usable == ApiToken.objects.usable().filter(pk=token.pk).exists()
