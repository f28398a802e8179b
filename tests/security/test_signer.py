"""Attacks by the application's own database role where a signer process runs, and what that process verifies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from django.contrib.sessions.backends.db import SessionStore
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.core.errors import Unavailable
from adapterhub.embedded.layout import database_signer_url
from registry.models import AdapterVersion, Alias, Approval, Rollout
from registry.serving.reconciler import RECONCILER
from registry.signer.client import ask, connection_to
from registry.signer.privileges import divide_rights
from tests.builders import member
from tests.conftest import HOME
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


@pytest.fixture
def divided(fresh_database: str, settings: Any, tmp_path: Path) -> str:
    """A database in which only the signer's role may sign, and no signer yet."""
    settings.SIGNER_URL = f"unix://{tmp_path}/signer.sock"
    divide_rights("owner")
    return fresh_database


@pytest.fixture
def signer(divided: str, settings: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process, as the supervisor starts it."""
    socket = settings.SIGNER_URL.removeprefix("unix://")
    command = [sys.executable, "manage.py", "run_signer", "--socket", socket]
    env = {**os.environ, "DATABASE_URL": database_signer_url(HOME, divided)}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        assert process.poll() is None
        connection = connection_to(settings.SIGNER_URL)
        with closing(connection), suppress(OSError):
            connection.request("GET", "/healthz")
            return connection.getresponse().status == 200
        return False

    wait_until(answers, 60, "the signer answers")
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def dana(project: Project) -> User:
    return member("dana", project, Membership.Role.APPROVER)


@pytest.fixture
def approval(divided: str, alias: Alias, candidate: AdapterVersion, alice: User) -> Approval:
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    plan: dict[str, Any] = {"steps": [{"weight": 50}], "reason": "try", "by": alice.as_actor()}
    return Rollout.create(alias=alias, candidate=candidate, **plan).approvals.get()


def execute(statement: str, *values: Any) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement, values)


def forge_a_signature(approval: Approval, dana: User) -> None:
    columns = "approval_id, author_id, user_id, name, decision, meaning, reason, bound, auth_method, at, person"
    execute(
        f"INSERT INTO registry_signature ({columns}) VALUES "  # noqa: S608
        "(%s, %s, %s, 'dana', 'approve', 'approved', '', %s, 'session', now(), '')",
        approval.pk,
        approval.author_id,
        dana.pk,
        approval.bound,
    )


def break_the_glass_as_nobody(approval: Approval, dana: User) -> None:
    execute("UPDATE registry_approval SET status = 'glass_broken' WHERE id = %s", approval.pk)


def break_the_glass_as_somebody(approval: Approval, dana: User) -> None:
    change = "status = 'glass_broken', broken_by_id = %s, review_due_at = now()"
    execute(f"UPDATE registry_approval SET {change} WHERE id = %s", dana.pk, approval.pk)  # noqa: S608


def decide_it(approval: Approval, dana: User) -> None:
    execute("UPDATE registry_approval SET status = 'approved' WHERE id = %s", approval.pk)


def take_the_signers_role(approval: Approval, dana: User) -> None:
    execute("SET LOCAL ROLE adapterhub_signer")


def grant_it(approval: Approval, dana: User) -> None:
    execute("GRANT INSERT ON registry_signature TO adapterhub_app")
    forge_a_signature(approval, dana)


def run_it_fully(approval: Approval, dana: User) -> None:
    execute("UPDATE registry_rollout SET status = 'running', weight = 100 WHERE id = %s", approval.rollout_id)


def promote_it(approval: Approval, dana: User) -> None:
    execute("UPDATE registry_alias SET version_id = %s WHERE id = %s", approval.candidate_id, approval.alias_id)


FORGERIES = [
    forge_a_signature,
    break_the_glass_as_nobody,
    break_the_glass_as_somebody,
    decide_it,
    take_the_signers_role,
    grant_it,
    run_it_fully,
    promote_it,
]


@pytest.mark.threat("B9")
def test_the_applications_role_forges_nothing(approval: Approval, dana: User) -> None:
    for forge in FORGERIES:
        with pytest.raises((DatabaseError, RuntimeWarning)):
            forge(approval, dana)
        approval.refresh_from_db()
        assert (approval.status, approval.signatures.count()) == ("pending", 0), forge


def by_page(user: User, approval: Approval, **fields: str) -> str:
    client = Client(headers={"Referer": "http://testserver/"})
    client.force_login(user)
    body = {"reason": "fine", "meaning": "approved", "seen": approval.bound, **fields}
    return client.post(reverse("decide", args=[approval.pk, "approve"]), body, follow=True).content.decode()


@pytest.mark.threat("B9")
def test_the_signer_signs_for_people_whom_it_verified(
    signer: subprocess.Popen[bytes], approval: Approval, dana: User, alice: User, project: Project
) -> None:
    assert "cannot approve your own" in by_page(alice, approval)
    api = APIClient()
    api.force_login(dana)
    session = api.session
    session["signed_in_at"] = 0
    session.save()
    path, fields = f"/api/v1/approvals/{approval.pk}/", {"reason": "fine"}
    for proof in ({}, {"password": "wrong"}):
        answer = api.post(f"{path}approve/", {**fields, **proof})
        assert (answer.status_code, answer.json()["code"]) == (403, "reauthentication_required")
    stale = api.post(f"{path}approve/", {**fields, "seen": "0" * 64, "password": "dana-long-password"})
    assert (stale.status_code, stale.json()["code"]) == (409, "evidence_changed")
    signed = api.post(f"{path}approve/", {**fields, "password": "dana-long-password", "meaning": "reviewed"})
    assert signed.json()["status"] == "approved", signed.content
    assert signed.json()["signatures"][0]["name"] == "dana"
    tags = [*AuditEvent.objects.about(approval).values_list("tag", "actor_name")]
    assert tags[:2] == [("approval:approved", "dana"), ("approval:signed", "dana")]
    assert verify(project)[1] == []
    rollout = approval.rollout
    rollout.started(by=RECONCILER)
    rollout.promote(reason="signed", by=alice.as_actor())
    assert Alias.objects.get().version == rollout.candidate


def anonymous(dana: User) -> str:
    return "nothing"


def forged(dana: User) -> str:
    """The session of another key, written as the application's role would."""
    own = SessionStore()
    own.update({"_auth_user_id": str(dana.pk), "_auth_user_backend": "django.contrib.auth.backends.ModelBackend"})
    own["signed_in_at"] = 2**33
    own.save()
    return str(own.session_key)


@pytest.mark.threat("B9")
def test_the_signer_believes_no_session_that_it_cannot_verify(
    signer: subprocess.Popen[bytes], approval: Approval, dana: User
) -> None:
    makers: list[Callable[[User], str]] = [anonymous, forged]
    for make in makers:
        decision = {
            "approval": str(approval.pk),
            "verb": "approve",
            "session": make(dana),
            "password": "",
            "address": "",
            "request_id": "r",
            "details": {"reason": "mine"},
        }
        with pytest.raises(Exception, match="session is over"):
            ask(decision)
    for wrong in ({}, {**decision, "verb": "use"}, {**decision, "approval": "x"}):
        with pytest.raises(Exception, match="incomplete"):
            ask(wrong)
    assert Approval.objects.get().status == "pending"


def test_without_its_process_nobody_signs(
    approval: Approval, dana: User, alice: User, settings: Any, project: Project
) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        ask({})
    api = APIClient()
    api.force_login(dana)
    path = f"/api/v1/approvals/{approval.pk}/approve/"
    assert api.post(path, {"reason": "x"}).json()["code"] == "signer_away"
    settings.SIGNER_URL = ""
    assert api.post(path, {"reason": "x"}).json()["code"] == "signer_away"
    token = ApiToken.issue(name="t", project=project, scopes=["read", "operate"], created_by=alice)[1]
    bot = APIClient(headers={"Authorization": f"Bearer {token}"})
    answer = bot.post(f"/api/v1/approvals/{approval.pk}/break-glass/", {"reason": "x"})
    assert (answer.status_code, answer.json()["code"]) == (403, "token_cannot_approve")
