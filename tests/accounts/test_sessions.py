"""Where somebody is signed in: listed, ended by themselves, and each ending recorded."""

from __future__ import annotations

from django.test import Client

from adapterhub.accounts.models import SignIn, User
from adapterhub.audit.models import AuditEvent


def signed_in(name: str, agent: str) -> Client:
    client = Client(headers={"user-agent": agent})
    form = {"username": name, "password": f"{name}-long-password"}
    assert client.post("/login/", form).status_code == 302
    return client


def test_a_person_ends_a_session_elsewhere(alice: User) -> None:
    current, elsewhere = signed_in("alice", "browser at work"), signed_in("alice", "lost phone")
    page = current.get("/sessions/").content.decode()
    assert "browser at work" in page
    assert "lost phone" in page
    lost = SignIn.objects.get(agent="lost phone")
    assert "lost phone" not in current.post("/sessions/", {"end": lost.pk, "reason": "I lost it."}).content.decode()
    assert elsewhere.get("/").status_code == 302
    assert current.get("/").status_code == 200
    assert AuditEvent.objects.filter(tag="session:revoked").get().actor_name == "alice"


def test_all_others_end_and_this_one_stays(alice: User) -> None:
    current, *others = (signed_in("alice", f"browser {number}") for number in range(3))
    current.post("/sessions/", {"reason": "I lost it."})
    assert [other.get("/").status_code for other in others] == [302, 302]
    assert current.get("/").status_code == 200


def test_nobody_ends_a_session_of_somebody_else(alice: User, bob: User) -> None:
    alices, bobs = signed_in("alice", "her phone"), signed_in("bob", "his")
    for wanted in (SignIn.objects.get(agent="her phone").pk, "x", "9" * 30):
        assert b"her phone" not in bobs.post("/sessions/", {"end": wanted, "reason": "mine?"}).content
    assert alices.get("/").status_code == 200
