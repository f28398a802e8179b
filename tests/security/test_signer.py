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
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from adapterhub.accounts import tokens
from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.accounts.signer.client import ask, connection_to
from adapterhub.accounts.signer.privileges import divide_rights
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.core.errors import Unavailable
from adapterhub.embedded.layout import database_signer_url
from adapterhub.workspace import store
from registry.models import AdapterVersion, Alias, Approval, Rollout
from registry.serving.reconciler import RECONCILER
from tests.builders import member
from tests.conftest import HOME
from tests.waiting import wait_until
from training.models import Dataset, Erasure

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


# A temporary table comes before the product's where a name says no more, and its owner may insert into it.
OWN_TABLE = "CREATE TEMPORARY TABLE registry_signature (LIKE public.registry_signature) ON COMMIT DROP"


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


def break_the_glass_beside_a_table_of_ones_own(approval: Approval, dana: User) -> None:
    with transaction.atomic():
        execute(OWN_TABLE)
        break_the_glass_as_somebody(approval, dana)


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
    break_the_glass_beside_a_table_of_ones_own,
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


@pytest.fixture
def waiting(divided: str, project: Project, alice: User) -> ApiToken:
    """A token of scope admin that nobody has approved."""
    return tokens.create(project, "terraform", ["admin"], by=alice.as_actor(), reason="It keeps the members.")[0]


@pytest.fixture
def erasure(divided: str, dataset: Dataset, project: Project) -> Erasure:
    dataset.keep_as("none", reason="a test", by=member("erna", project, Membership.Role.ADMIN).as_actor())
    return Erasure.request(dataset, reason="a letter", by=User.objects.get(username="erna").as_actor())


TOKEN_FORGERIES = [
    "UPDATE accounts_apitoken SET approved_at = now(), approved_by_id = {dana} WHERE id = '{token}'",
    "UPDATE accounts_apitoken SET needs_approval = false WHERE id = '{token}'",
    "UPDATE accounts_apitoken SET scopes = '{{admin}}' WHERE id = '{usable}'",
    "UPDATE accounts_apitoken SET secret_hash = 'mine' WHERE id = '{token}'",
    "UPDATE accounts_apitoken SET expires_at = now() + interval '9 years' WHERE id = '{token}'",
    "INSERT INTO accounts_apitoken (id, name, project_id, scopes, secret_hash, created_at, reason, needs_approval) "
    "SELECT 'forged', 'x', project_id, '{{admin}}', 'mine', now(), '', false FROM accounts_apitoken LIMIT 1",
    "INSERT INTO accounts_apitoken (id, name, project_id, scopes, secret_hash, created_at, reason, needs_approval, "
    "approved_at, approved_by_id) SELECT 'forged', 'x', project_id, '{{admin}}', 'mine', now(), '', true, now(), "
    "{dana} FROM accounts_apitoken LIMIT 1",
    "ALTER TABLE accounts_apitoken DISABLE TRIGGER approved",
]
ERASURE_FORGERIES = [
    "UPDATE training_erasure SET status = 'approved', signer_id = {dana}, decided_at = now() WHERE id = {erasure}",
    "UPDATE training_erasure SET status = 'rejected', signer_id = {dana}, decided_at = now() WHERE id = {erasure}",
    "UPDATE training_dataset SET status = 'erased' WHERE id = {dataset}",
    "DELETE FROM training_erasure WHERE id = {erasure}",
    "INSERT INTO training_erasure (dataset_id, reason, author_name, status, signer_id, meaning, created_at, "
    "decided_at) SELECT dataset_id, '', 'x', 'approved', {dana}, 'approved', now(), now() FROM training_erasure",
]


@pytest.mark.threat("B9")
def test_the_applications_role_approves_no_token_and_no_erasure(
    waiting: ApiToken, erasure: Erasure, dana: User, project: Project, alice: User
) -> None:
    usable = ApiToken.issue(name="ci", project=project, scopes=["read"], created_by=alice)[0]
    names = {"dana": dana.pk, "token": waiting.pk, "usable": usable.pk}
    names |= {"erasure": erasure.pk, "dataset": erasure.dataset_id}
    for forgery in TOKEN_FORGERIES + ERASURE_FORGERIES:
        for first in ("SELECT 1", OWN_TABLE):
            with pytest.raises(DatabaseError):
                execute(f"{first}; {forgery.format(**names)}")
    waiting.refresh_from_db()
    erasure.refresh_from_db()
    assert (waiting.is_usable, erasure.status, erasure.dataset.status) == (False, "pending", "ready")
    assert ApiToken.objects.count() == 2
    usable.was_used()
    tokens.revoke(waiting, by=alice.as_actor())
    with pytest.raises(DatabaseError):
        execute("UPDATE accounts_apitoken SET revoked_at = NULL WHERE id = %s", waiting.pk)


@pytest.mark.threat("B9")
@pytest.mark.slow
def test_the_signer_approves_tokens_and_erasures_of_people_whom_it_verified(
    signer: subprocess.Popen[bytes], waiting: ApiToken, erasure: Erasure, dana: User, alice: User
) -> None:
    maker, other = APIClient(), APIClient()
    maker.force_login(alice)
    other.force_login(dana)
    session = other.session
    session["signed_in_at"] = 0
    session.save()
    own = maker.post(f"/api/v1/tokens/{waiting.pk}/approve/", {"reason": "mine"})
    assert own.status_code == 403, own.content
    for url in (f"/api/v1/tokens/{waiting.pk}/approve/", f"/api/v1/erasures/{erasure.pk}/approve/"):
        unproved = other.post(url, {"reason": "seen", "password": "wrong"})
        assert (unproved.status_code, unproved.json()["code"]) == (403, "reauthentication_required")
        signed = other.post(url, {"reason": "seen", "password": "dana-long-password"})
        assert signed.status_code == 200, signed.content
    waiting.refresh_from_db()
    erasure.refresh_from_db()
    assert (waiting.is_usable, waiting.approved_by) == (True, dana)
    assert (erasure.status, erasure.signer, erasure.dataset.status) == ("approved", dana, "erased")
    assert not store().has(erasure.dataset.digest)


@pytest.mark.threat("B9")
@pytest.mark.slow
def test_a_command_makes_a_token_of_scope_admin_as_the_signer_alone(
    divided: str, project: Project, alice: User, settings: Any
) -> None:
    settings.SIGNER_DATABASE = None
    arguments = ["create_token", "setup", "--project", "eu", "--scope", "admin"]
    with pytest.raises(CommandError, match="only the signer's role"):
        call_command(*arguments)
    assert not ApiToken.objects.exists()
    env = {**os.environ, "DATABASE_URL": database_signer_url(HOME, divided)}
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ApiToken.objects.get().is_usable


def by_page(user: User, approval: Approval, **fields: str) -> str:
    client = Client(headers={"Referer": "http://testserver/"})
    client.force_login(user)
    body = {"reason": "fine", "meaning": "approved", "seen": approval.bound, **fields}
    return client.post(reverse("decide", args=[approval.pk, "approve"]), body, follow=True).content.decode()


@pytest.mark.slow
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
    assert rollout
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
@pytest.mark.slow
def test_the_signer_believes_no_session_that_it_cannot_verify(
    signer: subprocess.Popen[bytes], approval: Approval, dana: User
) -> None:
    makers: list[Callable[[User], str]] = [anonymous, forged]
    for make in makers:
        decision = {
            "kind": "approval",
            "record": str(approval.pk),
            "verb": "approve",
            "session": make(dana),
            "password": "",
            "address": "",
            "request_id": "r",
            "details": {"reason": "mine"},
        }
        with pytest.raises(Exception, match="session is over"):
            ask(decision)
    wrongs: list[dict[str, Any]] = [
        {"verb": "use"},
        {"kind": "rollout"},
        {"kind": "token", "verb": "reject"},
        {"details": {"by": "me"}},
    ]
    for wrong in ({}, *({**decision, **change} for change in wrongs)):
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
