"""Sign-in through a real OpenID Connect provider: code flow, groups to roles, and a group that is taken away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from django.conf import LazySettings
from django.test import Client
from oidc_provider_mock import run_server_in_thread

from adapterhub.accounts.login_lockout import FREE
from adapterhub.accounts.models import Membership, Project, User
from adapterhub.audit.models import AuditEvent, UnsealedEvent
from tests.builders import member


@pytest.fixture
def provider(settings: LazySettings) -> Iterator[str]:
    with run_server_in_thread() as server:
        url = f"http://localhost:{server.server_port}"
        app = {
            "provider_id": "sso",
            "name": "SSO",
            "client_id": "adapterhub",
            "secret": "hidden",
            "settings": {"server_url": url},
        }
        settings.SOCIALACCOUNT_PROVIDERS = {"openid_connect": {"OAUTH_PKCE_ENABLED": True, "APPS": [app]}}
        settings.OIDC_ROLES = {"ml": [("eu", "trainer")], "risk": [("eu", "approver"), ("unknown", "admin")]}
        yield url


def sign_in(provider: str, subject: str, groups: list[Any], lands_at: str = "/") -> Client:
    """Walk the code flow as a browser does."""
    claims = {"preferred_username": subject, "email": f"{subject}@example.org", "groups": groups}
    httpx.put(f"{provider}/users/{subject}", json=claims).raise_for_status()
    client = Client()
    to_provider = client.post("/accounts/oidc/sso/login/")
    assert to_provider.status_code == 302, (to_provider.status_code, to_provider.content)
    back = httpx.post(to_provider["Location"], data={"sub": subject})
    answer = client.get(back.headers["Location"].replace("http://testserver", ""))
    assert (answer.status_code, answer["Location"]) == (302, lands_at), answer.content
    return client


def roles(name: str) -> set[str]:
    return {*Membership.objects.filter(user__username=name).values_list("role", flat=True)}


def test_groups_become_roles_at_each_sign_in(provider: str, project: Project) -> None:
    client = sign_in(provider, "dana", ["ml", "risk", "chess", 7])
    assert roles("dana") == {"trainer", "approver"}
    assert client.get("/").status_code == 200
    sign_in(provider, "dana", ["ml"])
    assert roles("dana") == {"trainer"}
    tags = [*AuditEvent.objects.filter(project=project).order_by("id").values_list("tag", flat=True)]
    assert tags == ["membership:granted", "membership:granted", "membership:revoked"]


def test_a_role_given_by_hand_stays(provider: str, project: Project) -> None:
    sign_in(provider, "dana", ["ml"])
    dana = User.objects.get(username="dana")
    Membership.objects.create(user=dana, project=project, role="auditor")
    sign_in(provider, "dana", [])
    assert roles("dana") == {"auditor"}


def test_without_a_mapped_group_nothing_is_seen(provider: str, project: Project) -> None:
    client = sign_in(provider, "eve", ["chess"])
    assert client.get("/api/v1/projects/").json()["results"] == []


def test_the_name_of_a_local_account_is_not_taken_over(provider: str, project: Project) -> None:
    local = member("alice", project, "admin")
    User.objects.filter(pk=local.pk).update(email="alice@example.org")
    client = sign_in(provider, "alice", ["risk"], lands_at="/accounts/taken/")
    assert client.get("/accounts/taken/").status_code == 403
    assert client.get("/").status_code == 302
    assert roles("alice") == {"admin"}


def test_how_somebody_signed_in_is_kept(provider: str, project: Project) -> None:
    client = sign_in(provider, "dana", [])
    assert client.session["auth_method"] == "oidc"
    assert UnsealedEvent.objects.get().fields["evidence"] == {"method": "oidc"}


@pytest.mark.threat("C1")
def test_wrong_passwords_are_braked_and_kept(project: Project) -> None:
    member("bob", project, "viewer")
    client = Client()
    for _ in range(FREE):
        client.post("/login/", {"username": "bob", "password": "wrong"})
    answer = client.post("/login/", {"username": "bob", "password": "bob-long-password"})
    assert b"Too many attempts" in answer.content
    assert (answer.status_code, int(answer["Retry-After"])) == (429, 10)
    refused = UnsealedEvent.objects.filter(fields__tag="session:refused")
    assert refused.count() == FREE
    assert "wrong" not in str(refused.first().fields)
