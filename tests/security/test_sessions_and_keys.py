"""Sessions, second factors, kept answers and addresses in the hands of somebody else."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import LazySettings
from django.contrib.sessions.models import Session
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from django.utils.timezone import now
from rest_framework.test import APIClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from adapterhub.accounts import memberships
from adapterhub.accounts.models import ApiToken, Membership, Project, SecondFactor, SignIn, User
from adapterhub.api.models import IdempotentRequest
from adapterhub.environment import BadSetting, networks
from adapterhub.http.asgi_handler import OneThread
from tests.builders import member
from tests.builders.people import app_code
from tests.fakes.server import Server

ROOT = Path(__file__).resolve().parents[2]
POLL = {"HX-Request": "true"}
STREAM = {"Accept": "text/event-stream"}


def signed_in(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


def age(client: Client, **seconds: float) -> None:
    """Let the session's times lie further back."""
    session = client.session
    for name, ago in seconds.items():
        session[name] = time.time() - ago
    session.save()


@pytest.mark.threat("C17")
def test_a_session_ends_after_an_hour_without_a_click(alice: User) -> None:
    client = signed_in(alice)
    age(client, seen_at=3500)
    assert client.get("/").status_code == 200, "and that was a click"
    assert time.time() - client.session["seen_at"] < 60
    age(client, seen_at=3700)
    assert client.get("/").status_code == 302
    assert client.get("/api/v1/projects/").status_code in (401, 403)
    assert not Session.objects.exists()


@pytest.mark.threat("C17")
def test_what_an_open_page_asks_by_itself_keeps_no_session_alive(alice: User) -> None:
    client = signed_in(alice)
    age(client, seen_at=1800)
    for place, headers in (("/", POLL), ("/", STREAM), ("/healthz", {})):
        assert client.get(place, headers=headers).status_code == 200
        assert time.time() - client.session["seen_at"] > 1700


@pytest.mark.threat("C17")
def test_a_session_ends_half_a_day_after_the_sign_in(alice: User) -> None:
    client = signed_in(alice)
    age(client, began_at=12 * 3600 - 60)
    assert client.get("/").status_code == 200
    age(client, began_at=12 * 3600 + 1)
    assert client.get("/").status_code == 302


def test_the_stored_session_expires_with_it(alice: User, settings: LazySettings) -> None:
    client = signed_in(alice)
    left = Session.objects.get().expire_date - now()
    assert 3590 < left.total_seconds() <= 3600
    age(client, began_at=12 * 3600 - 600, seen_at=120)
    client.get("/")
    left = Session.objects.get().expire_date - now()
    assert 590 < left.total_seconds() <= 601
    Session.objects.update(expire_date=now())
    assert not SignIn.objects.open().exists()


def test_a_short_idle_time_is_kept_too(alice: User, settings: LazySettings) -> None:
    settings.SESSION_IDLE_S = 4
    client = signed_in(alice)
    age(client, seen_at=2)
    assert client.get("/").status_code == 200
    assert time.time() - client.session["seen_at"] < 1
    age(client, seen_at=5)
    assert client.get("/").status_code == 302


@pytest.mark.threat("C16")
def test_an_open_session_sets_up_no_second_factor_without_the_password(alice: User) -> None:
    client = signed_in(alice)
    (secret,) = re.findall(r"[A-Z2-7]{32}", client.get("/second-factor/").content.decode())
    for given in ({}, {"password": ""}, {"password": "guess"}):
        assert client.post("/second-factor/", {"code": app_code(secret), **given}).status_code == 422
    assert not SecondFactor.objects.exists()
    typed = {"code": app_code(secret), "password": "alice-long-password"}
    assert client.post("/second-factor/", typed).status_code == 200
    removal = {"reason": "mine now", "code": app_code(secret, 1)}
    assert client.post("/second-factor/", removal).status_code == 422
    assert SecondFactor.objects.exists()


@pytest.mark.threat("C16")
def test_without_a_password_the_sign_in_must_be_fresh(project: Project) -> None:
    person = member("dana", project, Membership.Role.VIEWER)
    person.set_unusable_password()
    person.save()
    client = signed_in(person)
    assert client.get("/second-factor/").status_code == 200
    age(client, signed_in_at=700)
    assert client.get("/second-factor/").status_code == 403


def api_of(user: User, key: str) -> APIClient:
    api = APIClient(headers={"Idempotency-Key": key})
    api.force_login(user)
    return api


NEW_TOKEN = {"project": "eu", "name": "t", "scopes": ["read"]}


@pytest.mark.parametrize(
    ("path", "body", "secret"),
    [
        ("tokens/", NEW_TOKEN, "token"),
        ("webhooks/", {"project": "eu", "url": "https://hooks.example.org/x", "events": ["token:*"]}, "secret"),
    ],
)
@pytest.mark.threat("C15")
def test_a_kept_answer_never_repeats_a_secret(
    alice: User,
    settings: LazySettings,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
    secret: str,
) -> None:
    settings.WEBHOOK_HOSTS = ["hooks.example.org"]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("93.184.215.14", 443))])
    api = api_of(alice, "once")
    first, again = (api.post(f"/api/v1/{path}", body) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201), (first.content, again.content)
    assert again["Idempotency-Replayed"] == "true"
    assert first.json()[secret]
    assert again.json() == {**first.json(), secret: None}


def by_lost_role(alice: User, text: str) -> None:
    for membership in alice.memberships.select_related("project", "user"):
        memberships.revoke(membership, by=alice.as_actor())


def by_lesser_role(alice: User, text: str) -> None:
    by_lost_role(alice, text)
    Membership.objects.create(user=alice, project=Project.objects.get(slug="eu"), role="viewer")


@pytest.mark.parametrize("lose", [by_lost_role, by_lesser_role])
@pytest.mark.parametrize("with_token", [True, False])
@pytest.mark.threat("C15")
def test_a_kept_answer_is_for_nobody_whose_power_is_gone(alice: User, ci: str, lose: Any, with_token: bool) -> None:
    api = api_of(alice, "once")
    if with_token:
        api = APIClient(headers={"Idempotency-Key": "once", "Authorization": f"Bearer {ci}"})
    assert api.post("/api/v1/tokens/", NEW_TOKEN).status_code == 201
    lose(alice, ci)
    again = api.post("/api/v1/tokens/", NEW_TOKEN)
    assert (again.status_code, again.json()["code"]) == (403, "scope_missing")
    assert IdempotentRequest.objects.filter(status=201).exists()


@pytest.mark.threat("C15")
def test_an_answer_that_needed_no_project_goes_with_the_projects(db: None) -> None:
    root = User.objects.create_superuser("root", password="root-long-password")
    api = api_of(root, "once")
    body = {"slug": "new", "name": "New"}
    assert api.post("/api/v1/projects/", body).status_code == 201
    assert api.post("/api/v1/projects/", body)["Idempotency-Replayed"] == "true"
    User.objects.update(is_superuser=False)
    assert api.post("/api/v1/projects/", body).status_code == 403


def tell_address(request: HttpRequest) -> HttpResponse:
    return HttpResponse(f"{request.META['REMOTE_ADDR']} {request.scheme}")


urlpatterns = [path("address/", tell_address)]
FORGED = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}


@pytest.fixture
def told_address(settings: LazySettings, db: None) -> Callable[[list[str], dict[str, str]], str]:
    """Return what the web application takes for a caller's address, with the named proxies before it."""
    settings.ROOT_URLCONF = __name__

    def tell(proxies: list[str], headers: dict[str, str]) -> str:
        handler = OneThread()
        try:
            with Server(ProxyHeadersMiddleware(handler, proxies), lifespan="off") as server:
                return httpx.get(f"{server.url}/address/", headers=headers).text
        finally:
            handler.threads.shutdown()

    return tell


@pytest.mark.threat("C13")
def test_a_forwarded_address_is_believed_from_named_proxies_alone(told_address: Any) -> None:
    assert told_address([], FORGED) == "127.0.0.1 http"
    assert told_address(["192.0.2.7"], FORGED) == "127.0.0.1 http"
    assert told_address(["127.0.0.1"], FORGED) == "203.0.113.9 https"
    forged_before_the_proxy = {"X-Forwarded-For": "198.51.100.1, 203.0.113.9"}
    assert told_address(["127.0.0.0/8"], forged_before_the_proxy) == "203.0.113.9 http"


@pytest.mark.threat("C13")
@pytest.mark.slow
def test_the_web_process_believes_nobody_by_default(site_process: str) -> None:
    """From this machine, too: the address is that of the listed session."""
    with httpx.Client(base_url=site_process, headers=FORGED) as client:
        client.get("/login/")
        form = {"username": "alice", "password": "guess", "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        assert client.post("/login/", data=form).status_code == 200
        answers = []
        for number in range(6):
            client.headers["X-Forwarded-For"] = f"203.0.113.{number}"
            answers.append(client.post("/login/", data=form).status_code)
    assert answers[-1] == 429


@pytest.mark.parametrize("text", ["nginx", "*", "10.0.0.1/8", "10.0.0.256"])
def test_a_proxy_is_named_by_its_address(text: str) -> None:
    with pytest.raises(BadSetting, match="is not an IP address or network"):
        networks("ADAPTERHUB_PROXIES", {"ADAPTERHUB_PROXIES": f"10.0.0.2,{text}"})


@pytest.mark.threat("C13")
def test_every_command_of_the_web_process_has_uvicorn_believe_nobody() -> None:
    texts = [path for name in ("Dockerfile", "docker-compose.yml", "ARCHITECTURE.md") for path in ROOT.glob(name)]
    texts += [path for name in ("adapterhub", "benchmarks", "docs") for path in (ROOT / name).rglob("*.*")]
    starts = re.compile(r"uvicorn\W[^\n]{0,12}\W*adapterhub\.asgi:application")
    for file in texts:
        if file.suffix in (".py", ".md", ".yml", "") and starts.search(content := file.read_text()):
            assert "--no-proxy-headers" in content or "proxy_headers=False" in content, file


def test_a_token_of_nobody_is_as_it_was_made(project: Project) -> None:
    """A token of the server's own command has no owner whose roles could limit it."""
    text = ApiToken.issue(name="t", project=project, scopes=["read"])[1]
    assert APIClient(headers={"Authorization": f"Bearer {text}"}).get("/api/v1/projects/").json()["results"]
