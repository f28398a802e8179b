"""Accounts in the browser: an administrator creates them, and each person chooses a password by a link of one use."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import Invitation, Project, User
from adapterhub.audit.models import AuditEvent

pytestmark = pytest.mark.django_db
NEW = {"username": "tom", "email": "tom@example.org", "project": "", "role": "trainer"}
PASSWORDS = {"new_password1": "a quite long password", "new_password2": "a quite long password"}


@pytest.fixture
def root() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("root", "root@example.org", "root-long-password"))
    return client


def link_in(answer: Any) -> str:
    return re.search(r"http://testserver(/welcome/[^<\s]+)", answer.content.decode())[1]


def choose(link: str) -> Client:
    visitor = Client()
    assert visitor.get(link)["Location"] == "/welcome/"
    return visitor


def test_a_new_person_chooses_a_password_and_accepts_the_role(root: Client, project: Project) -> None:
    visitor = choose(link_in(root.post("/people/", {**NEW, "project": "eu"})))
    assert visitor.post("/welcome/", PASSWORDS)["Location"] == "/invitations/"
    page = visitor.get("/invitations/").content.decode()
    assert "European compliance" in page
    visitor.post(f"/invitations/{Invitation.objects.get().pk}/accept/")
    assert User.objects.get(username="tom").scopes_in(project) >= {"train"}
    tags = list(AuditEvent.objects.filter(object_name="tom").values_list("tag", "actor_name").order_by("id"))
    assert tags == [("user:created", "root"), ("user:changed", "tom")]


@pytest.mark.threat("C19")
def test_the_link_works_once(root: Client) -> None:
    link = link_in(root.post("/people/", NEW))
    first, second = choose(link), choose(link)
    assert first.post("/welcome/", PASSWORDS).status_code == 302
    assert second.post("/welcome/", PASSWORDS).status_code == 410
    assert choose(link).get("/welcome/").status_code == 410


def test_a_weak_password_is_refused(root: Client) -> None:
    visitor = choose(link_in(root.post("/people/", NEW)))
    assert visitor.post("/welcome/", {"new_password1": "short", "new_password2": "short"}).status_code == 422


def test_a_used_name_is_refused_and_invites_nobody(root: Client, project: Project) -> None:
    root.post("/people/", NEW)
    assert root.post("/people/", {**NEW, "project": "eu"}).status_code == 422
    assert not Invitation.objects.exists()


def test_a_closed_account_is_signed_out_and_opened_again(root: Client) -> None:
    tom = User.objects.create_user("tom", "tom@example.org", "tom-long-password")
    browser = Client()
    browser.login(username="tom", password="tom-long-password")
    root.post(f"/people/{tom.pk}/close/", {"reason": "left"})
    assert browser.get("/").status_code == 302
    tom.refresh_from_db()
    assert not tom.is_active
    root.post(f"/people/{tom.pk}/open/", {"reason": "is back"})
    tom.refresh_from_db()
    assert tom.is_active


def test_a_forgotten_password_ends_and_another_is_chosen_by_a_link(root: Client) -> None:
    tom = User.objects.create_user("tom", "tom@example.org", "tom-long-password")
    answer = root.post(f"/people/{tom.pk}/link/", {"reason": "forgot it"}, follow=True)
    assert choose(link_in(answer)).post("/welcome/", PASSWORDS).status_code == 302
    tom.refresh_from_db()
    assert tom.check_password("a quite long password")


def test_nobody_closes_the_own_account(root: Client) -> None:
    own = User.objects.get(username="root")
    root.post(f"/people/{own.pk}/close/", {"reason": "x"})
    own.refresh_from_db()
    assert own.is_active


@pytest.mark.threat("C19")
def test_an_admin_of_a_project_manages_no_accounts(client: Client, alice: User) -> None:
    client.force_login(alice)
    assert client.get("/people/").status_code == 403
    assert client.post("/people/", NEW).status_code == 403
    assert client.post(f"/people/{alice.pk}/link/", {"reason": "x"}).status_code == 403
