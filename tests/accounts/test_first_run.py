"""The setup link of an empty installation: one use, one hour, hashed, and only while nobody has an account."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils.timezone import now

from adapterhub.accounts import setup_link
from adapterhub.accounts.models import SetupLink, User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.actor import system
from adapterhub.core.tokens import secret_hash

FORM = {
    "username": "ada",
    "email": "ada@example.org",
    "password1": "a quite long password",
    "password2": "a quite long password",
}
pytestmark = pytest.mark.django_db


@pytest.fixture
def link() -> str:
    text = call_command("setup_link", "--url", "https://hub.example/")
    assert text.startswith("https://hub.example/setup/")
    return text.removeprefix("https://hub.example")


def test_the_link_creates_the_first_administrator_and_signs_them_in(client: Client, link: str) -> None:
    opened = client.get(link)
    assert opened["Location"] == "/setup/"
    assert client.post("/setup/", FORM)["Location"] == "/first-steps/"
    ada = User.objects.get()
    assert (ada.username, ada.email, ada.is_superuser) == ("ada", "ada@example.org", True)
    assert "Create a project" in client.get("/").content.decode()
    tags = AuditEvent.objects.filter(project=None).order_by("sequence").values_list("tag", "actor_name", "auth_method")
    assert list(tags)[:3] == [
        ("setup_link:issued", "system:command", "system"),
        ("setup_link:used", "ada", "setup link"),
        ("user:created", "ada", "setup link"),
    ]


@pytest.mark.threat("C18")
def test_the_secret_is_stored_nowhere(client: Client, link: str) -> None:
    secret = link.split("/")[2]
    client.get(link)
    assert SetupLink.objects.get().secret_hash == secret_hash(secret)
    stored = [*client.session.items(), *AuditEvent.objects.values_list("object_name", "after", "evidence")]
    assert secret not in str(stored)


def used(client: Client, link: str) -> None:
    client.get(link)
    client.post("/setup/", FORM)


def expired(client: Client, link: str) -> None:
    SetupLink.objects.update(expires_at=now() - timedelta(seconds=1))


def replaced(client: Client, link: str) -> None:
    setup_link.issue(by=system("test"))


def needless(client: Client, link: str) -> None:
    User.objects.create_superuser("eve", "eve@example.org", "eve-long-password")


@pytest.mark.threat("C18")
@pytest.mark.parametrize("closed", [used, expired, replaced, needless])
def test_a_closed_link_creates_nobody(client: Client, link: str, closed: Callable[[Client, str], None]) -> None:
    visitor = Client()
    assert visitor.get(link).status_code == 302
    closed(client, link)
    accounts = User.objects.count()
    answer = visitor.post("/setup/", {**FORM, "username": "mallory"})
    assert (answer.status_code, User.objects.count()) == (302 if accounts else 410, accounts)
    assert Client().get(link).status_code == (302 if accounts else 410)
    assert not User.objects.filter(username="mallory").exists()


@pytest.mark.threat("C18")
def test_a_guessed_link_and_none_at_all_create_nobody(client: Client, link: str) -> None:
    assert client.get("/setup/guessed/").status_code == 410
    assert client.post("/setup/", FORM).status_code == 410
    assert not User.objects.exists()


@pytest.mark.parametrize(
    ("field", "value"), [("password1", "short"), ("password2", "another long one"), ("email", ""), ("username", "a b")]
)
def test_a_bad_form_keeps_the_link(client: Client, link: str, field: str, value: str) -> None:
    client.get(link)
    assert client.post("/setup/", {**FORM, field: value}).status_code == 422
    assert client.post("/setup/", FORM).status_code == 302


def test_behind_tls_the_first_administrator_sets_up_a_second_factor_first(
    client: Client, link: str, settings: object
) -> None:
    client.get(link)
    settings.HTTPS = True  # type: ignore[attr-defined]
    assert client.post("/setup/", FORM)["Location"] == "/login/code/"
    assert "_auth_user_id" not in client.session


def test_no_link_is_printed_where_somebody_has_an_account() -> None:
    User.objects.create_user("eve", "eve@example.org", "eve-long-password")
    with pytest.raises(CommandError, match="There are accounts already"):
        call_command("setup_link")
    assert call_command("setup_link", "--if-empty") in ("", None)
    assert not SetupLink.objects.exists()


def test_the_sign_in_page_says_how_to_get_the_first_account(client: Client) -> None:
    assert "manage.py setup_link" in client.get("/login/").content.decode()
    User.objects.create_user("eve", "eve@example.org", "eve-long-password")
    assert "setup_link" not in client.get("/login/").content.decode()
