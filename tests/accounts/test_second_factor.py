"""The second factor of local accounts: asked at every door, each code once, and never optional for administrators."""

from __future__ import annotations

import base64
import re
import time

import pytest
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.test import Client

from adapterhub.accounts import second_factor
from adapterhub.accounts.login_lockout import FREE
from adapterhub.accounts.models import SecondFactor, SignIn, User
from adapterhub.audit.models import AuditEvent, UnsealedEvent
from tests.builders.people import app_code

TYPED = {"password": "alice-long-password"}


def typed_password(name: str, **extra: str) -> tuple[Client, str]:
    client = Client()
    answer = client.post("/login/", {"username": name, "password": f"{name}-long-password", **extra})
    return client, answer["Location"]


@pytest.fixture
def secret(alice: User) -> str:
    """Alice has set up her app."""
    new_secret = second_factor.new_secret()
    second_factor.enable(alice, new_secret, app_code(new_secret, -1), by=alice.as_actor())
    return new_secret


def test_a_person_sets_it_up_and_is_asked_from_then_on(alice: User) -> None:
    client = Client()
    client.force_login(alice)
    secret = re.findall(r"[A-Z2-7]{32}", client.get("/second-factor/").content.decode())[0]
    wrong = client.post("/second-factor/", {"code": "000000", **TYPED})
    assert (wrong.status_code, SecondFactor.objects.count()) == (422, 0)
    page = client.post("/second-factor/", {"code": app_code(secret, -1), **TYPED}).content.decode()
    codes = re.findall(r"^(?:<pre>)?([0-9a-f]{10})$|<pre>([0-9a-f]{10})", page, re.MULTILINE)
    assert len(codes) == second_factor.RECOVERY_CODES
    assert AuditEvent.objects.get(tag="user:mfa_enabled").object_name == "alice"
    half, lands_at = typed_password("alice", next="/adapters/")
    assert lands_at == "/login/code/"
    assert half.get("/").status_code == 302
    assert half.post("/login/code/", {"code": app_code(secret)})["Location"] == "/adapters/"
    assert half.get("/").status_code == 200
    assert SignIn.objects.filter(user=alice).latest("at").method == "password+code"


def test_a_code_is_good_once(secret: str) -> None:
    first, second = typed_password("alice")[0], typed_password("alice")[0]
    code = app_code(secret)
    assert first.post("/login/code/", {"code": code}).status_code == 302
    assert second.post("/login/code/", {"code": code}).status_code == 422
    assert second.get("/").status_code == 302


def test_a_recovery_code_is_good_once(alice: User) -> None:
    secret = second_factor.new_secret()
    codes = second_factor.enable(alice, secret, app_code(secret), by=alice.as_actor())
    answers = [typed_password("alice")[0].post("/login/code/", {"code": codes[0]}).status_code for _ in range(2)]
    assert answers == [302, 422]


@pytest.mark.threat("C1")
def test_codes_are_braked_with_the_passwords_and_recorded(secret: str) -> None:
    client = typed_password("alice")[0]
    for _ in range(FREE):
        assert client.post("/login/code/", {"code": "000000"}).status_code == 422
    assert b"Too many attempts" in client.post("/login/code/", {"code": app_code(secret)}).content
    assert UnsealedEvent.objects.filter(fields__tag="session:refused", fields__actor_name="alice").count() == FREE


def test_the_second_step_without_the_first_leads_back(secret: str) -> None:
    assert Client().post("/login/code/", {"code": app_code(secret)})["Location"] == "/login/"


def test_the_first_step_is_forgotten_after_five_minutes(secret: str) -> None:
    client = typed_password("alice")[0]
    session = client.session
    session["half_signed_in"] = {**session["half_signed_in"], "at": time.time() - 301}
    session.save()
    assert client.post("/login/code/", {"code": app_code(secret)})["Location"] == "/login/"


def test_a_copy_of_the_database_holds_no_secret(secret: str, alice: User) -> None:
    stored = bytes(alice.second_factor.sealed)
    assert secret.encode() not in stored
    assert base64.b32decode(secret) not in stored


def test_behind_tls_an_administrator_cannot_do_without(db: None, settings: LazySettings) -> None:
    User.objects.create_superuser("root", password="root-long-password")
    assert typed_password("root")[1] == "/"
    settings.HTTPS = True
    client, lands_at = typed_password("root", next="/admin/")
    assert lands_at == "/login/code/"
    page = client.get("/login/code/").content.decode()
    assert "needs one" in page
    assert client.get("/admin/").status_code == 302
    answer = client.post("/login/code/", {"code": app_code(re.findall(r"[A-Z2-7]{32}", page)[0])})
    assert b"Save these recovery codes" in answer.content
    assert b'href="/admin/"' in answer.content
    assert client.get("/admin/").status_code == 200


def test_the_admin_pages_have_no_door_of_their_own(alice: User) -> None:
    """Django's own form would pass by the brake and the second step."""
    client = Client()
    assert client.get("/admin/")["Location"] == "/admin/login/?next=/admin/"
    assert client.get("/admin/login/?next=/admin/")["Location"] == "/login/?next=/admin/"
    assert client.post("/admin/login/", {"username": "alice", "password": "alice-long-password"}).status_code == 302
    assert "_auth_user_id" not in client.session
    client.force_login(alice)
    assert client.get("/admin/login/?next=/admin/").status_code == 403


def test_it_is_taken_away_with_a_code_or_by_the_command(secret: str, alice: User) -> None:
    client = Client()
    client.force_login(alice)
    removal = {**TYPED, "reason": "A new phone."}
    assert client.post("/second-factor/", {**removal, "code": "000000"}).status_code == 422
    assert client.post("/second-factor/", {**removal, "code": app_code(secret)}).status_code == 302
    assert not SecondFactor.objects.exists()
    with pytest.raises(CommandError, match="no second factor"):
        call_command("reset_second_factor", "alice", reason="x")
    new_secret = second_factor.new_secret()
    second_factor.enable(alice, new_secret, app_code(new_secret), by=alice.as_actor())
    call_command("reset_second_factor", "alice", reason="Her phone was stolen.")
    last = AuditEvent.objects.filter(tag="user:mfa_removed").latest("id")
    assert (last.actor_name, last.reason) == ("system:command", "Her phone was stolen.")
