"""Attacks on people who are not in a project: they are enrolled unasked, or a refusal tells that they exist."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from allauth.socialaccount.models import SocialAccount
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils.timezone import now
from rest_framework.test import APIClient

from adapterhub.accounts import memberships, service_accounts
from adapterhub.accounts.invitations import verbs
from adapterhub.accounts.models import Invitation, Membership, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Conflict
from registry.models import Alias
from tests.builders import member
from tests.markup import markup

MEMBERS, SENT = "/api/v1/projects/eu/members/", "/api/v1/projects/eu/invitations/"
MINE = "/api/v1/invitations/"


def signed_in(user: User) -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.force_login(user)
    return client


def invited(client: APIClient, address: str, role: str = "viewer") -> dict[str, Any]:
    answer = client.post(SENT, {"address": address, "role": role}, format="json")
    assert answer.status_code == 201, answer.content
    sent: dict[str, Any] = answer.json()
    return sent


def without(text: str, *names: str) -> str:
    """The text without the names that the request itself named."""
    for name in names:
        text = text.replace(name, "NAME")
    return text


@pytest.mark.threat("A7")
def test_nobody_is_enrolled_unasked(alice: User, charlie: User, ci: str) -> None:
    """The attack: the admin of a project adds a stranger, in their session and with a token."""
    for client in (signed_in(alice), APIClient(headers={"Authorization": f"Bearer {ci}"})):
        answer = client.post(MEMBERS, {"user": "charlie", "role": "viewer"}, format="json")
        assert (answer.status_code, answer.json()["code"]) == (422, "not_a_member")
    assert not Membership.objects.filter(user=charlie, project__slug="eu").exists()


@pytest.mark.threat("A7")
@pytest.mark.parametrize(
    ("known", "unknown"),
    [("charlie", "nobody1"), ("charlie@example.org", "nobody1@example.org"), ("eu/robot", "eu/nobot")],
)
@pytest.mark.parametrize("path", [MEMBERS, f"{MEMBERS}revoke/", SENT])
def test_no_answer_tells_whether_there_is_an_account(
    alice: User, charlie: User, project: Project, known: str, unknown: str, path: str
) -> None:
    other = Project.objects.get(slug="other")
    service_accounts.create(other, "robot", "viewer", by=charlie.as_actor())
    client, name = signed_in(alice), "address" if path == SENT else "user"
    answers = [client.post(path, {name: one, "role": "viewer"}, format="json") for one in (known, unknown)]
    texts = []
    for one, answer in zip((known, unknown), answers, strict=True):
        body = answer.json()
        for own in ("id", "created_at", "expires_at"):
            body.pop(own, None)
        texts.append((answer.status_code, without(json.dumps(body), one)))
    assert texts[0] == texts[1]


@pytest.mark.threat("A7")
def test_the_list_of_invitations_says_the_same_of_known_and_unknown(alice: User, charlie: User) -> None:
    client = signed_in(alice)
    sent = [invited(client, address) for address in ("charlie@example.org", "nobody@example.org")]
    rows = client.get(SENT).json()
    assert {row["id"] for row in rows} == {one["id"] for one in sent}
    assert {json.dumps({**row, "id": "", "address": "", "created_at": "", "expires_at": ""}) for row in rows} == {
        json.dumps({**sent[0], "id": "", "address": "", "created_at": "", "expires_at": ""})
    }


def test_an_invitation_is_accepted_by_rest(alice: User, charlie: User, project: Project) -> None:
    sent = invited(signed_in(alice), "Charlie@Example.org ", "trainer")
    person = signed_in(charlie)
    assert [one["id"] for one in person.get(MINE).json()["results"]] == [sent["id"]]
    assert person.get("/api/v1/projects/eu/").status_code == 404
    assert person.post(f"{MINE}{sent['id']}/accept/").json()["state"] == "accepted"
    assert person.get("/api/v1/projects/eu/").status_code == 200
    assert person.post(f"{MINE}{sent['id']}/accept/").status_code == 404
    tags = ["invitation:sent", "invitation:accepted", "membership:granted"]
    events = AuditEvent.objects.filter(project=project, tag__in=tags).order_by("sequence")
    assert [(event.tag, event.actor_name) for event in events] == [
        ("invitation:sent", "alice"),
        ("membership:granted", "charlie"),
        ("invitation:accepted", "charlie"),
    ]
    assert [(one.user, one.role, one.by) for one in memberships.roles_at(project, now())] == [
        ("charlie", "trainer", "alice")
    ]


def test_an_invitation_is_answered_and_revoked_in_the_browser(alice: User, charlie: User, client: Any) -> None:
    client.force_login(alice)
    for role in ("viewer", "trainer", "auditor"):
        form = {"project": "eu", "address": "charlie", "role": role, "reason": "She joins."}
        assert client.post("/invitations/", form).status_code == 302
    again = client.post("/invitations/", form)
    assert (again.status_code, "invited as auditor already" in markup(again)) == (422, True)
    auditor = Invitation.objects.get(role="auditor")
    client.post(f"/invitations/{auditor.pk}/revoke/", {"reason": "by mistake"})
    client.force_login(charlie)
    page = markup(client.get("/invitations/"))
    assert "European compliance" in page
    assert "auditor in" not in page
    for role, verb in (("viewer", "decline"), ("trainer", "accept")):
        assert client.post(f"/invitations/{Invitation.objects.get(role=role).pk}/{verb}/").status_code == 302
    assert client.post(f"/invitations/{auditor.pk}/accept/").status_code == 404
    assert list(charlie.memberships.filter(project__slug="eu").values_list("role", flat=True)) == ["trainer"]
    assert {one.role: one.state for one in Invitation.objects.all()} == {
        "viewer": "declined",
        "trainer": "accepted",
        "auditor": "revoked",
    }


@pytest.mark.threat("A7")
def test_nobody_accepts_for_another(alice: User, bob: User, charlie: User, ci: str) -> None:
    """Neither another person, nor a token, nor a name that somebody chose to look like the mail address."""
    sent = invited(signed_in(alice), "charlie@example.org", "admin")
    impostor = User.objects.create_user("charlie@example.org", "impostor@example.org")
    strangers = [signed_in(bob), signed_in(impostor), APIClient(headers={"Authorization": f"Bearer {ci}"})]
    for client in strangers:
        assert client.get(MINE).json()["results"] == []
        assert client.post(f"{MINE}{sent['id']}/accept/").status_code == 404
        assert client.post(f"{MINE}{sent['id']}/decline/").status_code == 404
    assert Invitation.objects.get().state == "open"


@pytest.mark.threat("A7")
def test_a_mail_address_that_the_provider_did_not_verify_takes_no_invitation(alice: User, charlie: User) -> None:
    sent = invited(signed_in(alice), "charlie@example.org")
    claims = {"userinfo": {"email_verified": False}}
    SocialAccount.objects.create(user=charlie, provider="openid_connect", uid="7", extra_data=claims)
    assert signed_in(charlie).post(f"{MINE}{sent['id']}/accept/").status_code == 404


@pytest.mark.threat("A7")
def test_an_invitation_ends(alice: User, charlie: User, project: Project, client: Client) -> None:
    sent = invited(signed_in(alice), "charlie")
    Invitation.objects.update(expires_at=now() - timedelta(seconds=1))
    assert signed_in(charlie).post(f"{MINE}{sent['id']}/accept/").status_code == 404
    assert signed_in(alice).get(SENT).json()[0]["state"] == "expired"
    assert invited(signed_in(alice), "charlie")["id"] != sent["id"]


@pytest.mark.threat("A7")
def test_an_admin_who_lost_the_role_left_no_way_back(alice: User, project: Project) -> None:
    """The attack: invite an account of one's own, lose the role, and accept."""
    eve = member("eve", project, Membership.Role.ADMIN)
    second = member("second", None)
    invitation = verbs.send(project, "second", "admin", by=eve.as_actor())
    memberships.revoke(eve.memberships.get(), by=alice.as_actor())
    with pytest.raises(Conflict, match="no longer an admin"):
        verbs.accept(invitation, by=second.as_actor())
    assert not second.memberships.exists()


@pytest.mark.threat("A3")
def test_the_name_of_a_service_account_of_another_project_is_free(alice: User, charlie: User) -> None:
    """The attack: names tried one by one, which 409 told to be accounts of others, or people."""
    other = Project.objects.get(slug="other")
    service_accounts.create(other, "robot", "viewer", by=charlie.as_actor())
    client = signed_in(alice)
    for name in ("robot", "charlie"):
        body = {"project": "eu", "name": name, "role": "viewer"}
        answer = client.post("/api/v1/service-accounts/", body, format="json")
        assert (answer.status_code, answer.json()["name"]) == (201, f"eu/{name}")
        assert client.post("/api/v1/service-accounts/", body, format="json").status_code == 409
    token = {"project": "eu", "name": "t", "scopes": ["read"], "account": "robot"}
    assert client.post("/api/v1/tokens/", token, format="json").json()["account"] == "eu/robot"
    assert client.post("/api/v1/tokens/", {**token, "account": "other/robot"}, format="json").status_code == 422
    assert client.post("/tokens/accounts/eu/eu/robot/close/", {"reason": "x"}, format="multipart").status_code == 302


@pytest.mark.threat("A3")
def test_no_person_is_called_as_a_service_account_may_be(db: None, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a-long-password-of-a-test")
    with pytest.raises(CommandError, match="Enter a valid username"):
        call_command("ensure_user", "eu/next", password_file=tmp_path / "password")


Call = Callable[[APIClient, str], Any]
# Each names something of another project, which is there or not.
NAMING: dict[str, tuple[str, str, Call]] = {
    "owner of a service account": (
        "charlie",
        "nobody1",
        lambda client, name: client.post(
            "/api/v1/projects/eu/service-accounts/hand-over/", {"name": "mine", "owner": name, "reason": "x"}
        ),
    ),
    "owner, on the page": (
        "charlie",
        "nobody1",
        lambda client, name: client.post(
            "/tokens/accounts/eu/eu/mine/hand-over/", {"owner": name, "reason": "x"}, format="multipart"
        ),
    ),
    "service account": (
        "other/robot",
        "other/nobot",
        lambda client, name: client.post("/api/v1/projects/eu/service-accounts/close/", {"name": name}),
    ),
    "project of a new adapter": (
        "other",
        "never",
        lambda client, name: client.post(
            "/api/v1/adapters/", {"project": name, "slug": "x", "base_model": "tiny"}, format="json"
        ),
    ),
    "project that is granted a cluster": (
        "other",
        "never",
        lambda client, name: client.post("/api/v1/clusters/cpu/grants/", {"project": name}, format="json"),
    ),
    "cluster of an alias": (
        "other.theirs",
        "other.nobody",
        lambda client, name: client.post(
            "/api/v1/aliases/", {"project": "eu", "name": "x", "cluster": name, "version": "dora.v1"}, format="json"
        ),
    ),
    "project's page": ("other", "never", lambda client, name: client.get(f"/api/v1/projects/{name}/members/")),
    "adapter": ("other.theirs", "other.nobody", lambda client, name: client.get(f"/api/v1/adapters/{name}/")),
    "filter": ("other", "never", lambda client, name: client.get("/api/v1/adapters/", {"project": name})),
    "filter of tokens": (
        "other/robot",
        "other/nobot",
        lambda client, name: client.get("/api/v1/tokens/", {"account": name}),
    ),
    "sign-in": (
        "charlie",
        "nobody1",
        lambda client, name: Client(raise_request_exception=False).post(
            "/login/", {"username": name, "password": "wrong"}
        ),
    ),
    "sign-in of a service account": (
        "other/robot",
        "other/nobot",
        lambda client, name: Client(raise_request_exception=False).post(
            "/login/", {"username": name, "password": "wrong"}
        ),
    ),
}


@pytest.mark.threat("A3")
@pytest.mark.parametrize("kind", NAMING)
def test_no_refusal_tells_of_what_others_have(
    alice: User, charlie: User, project: Project, alias: Alias, adapter: Any, base_model: Any, kind: str
) -> None:
    other = Project.objects.get(slug="other")
    service_accounts.create(other, "robot", "viewer", by=charlie.as_actor())
    service_accounts.create(project, "mine", "viewer", by=alice.as_actor())
    type(alias.cluster).create(project=other, slug="theirs", base_model=base_model, by=charlie.as_actor())
    type(adapter).create(project=other, slug="theirs", base_model=base_model, by=charlie.as_actor())
    known, unknown, call = NAMING[kind]
    answers = []
    for name in (known, unknown):
        answer = call(signed_in(alice), name)
        text = without(answer.content.decode(), name)
        answers.append((answer.status_code, anonymous(text)))
    assert answers[0] == answers[1]


def anonymous(text: str) -> str:
    """The text without what differs between two answers of the same kind: tokens of forms, times, and ids."""
    text = re.sub(r'(csrfmiddlewaretoken" value=")[^"]+', r"\1", text)
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z|nonce=\"[^\"]+\"", "", text)
