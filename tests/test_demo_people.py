"""The demo's people: they sign in by the page, Olga asks, Alice is refused, Bob signs, Olga promotes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from django.core import signals
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from rich.console import Console

from adapterhub.accounts.models import ApiToken, Project
from adapterhub.audit.models import AuditEvent
from adapterhub.demo import api_client, walkthrough
from registry.models import AdapterVersion, Alias, Rollout
from registry.serving.reconciler import RECONCILER

URL = "http://testserver"


@pytest.fixture
def one_connection() -> Iterator[None]:
    """A request must not close the connection of the test's transaction, as in Django's own client."""
    ends = (signals.request_started, signals.request_finished)
    for signal in ends:
        signal.disconnect(close_old_connections)
    yield
    for signal in ends:
        signal.connect(close_old_connections)


@pytest.fixture
def demo(
    one_connection: None,
    project: Project,
    alias: Alias,
    candidate: AdapterVersion,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> walkthrough.Walkthrough:
    """A story whose hub speaks to this process' Django by HTTP."""
    transport = httpx.WSGITransport(app=get_wsgi_application())
    monkeypatch.setattr(api_client.httpx, "Client", partial(httpx.Client, transport=transport))
    monkeypatch.setattr(walkthrough, "ALIAS", alias.name)
    monkeypatch.setattr(walkthrough.Walkthrough, "wait_for_router", lambda *_: None)
    password = tmp_path / "password"
    password.write_text("long-enough-for-a-test")
    people = {}
    for name, role in (("anna", "trainer"), ("bernd", "approver"), ("olga", "operator")):
        who = ("--email", f"{name}@example.org", "--member", f"{project.slug}:{role}")
        call_command("ensure_user", name, "--password-file", str(password), *who)
        people[name] = api_client.Person(URL, name, password.read_text())
    cast = {"alice": people["anna"], "bob": people["bernd"], "olga": people["olga"]}
    token = ApiToken.issue(name="demo", project=project, scopes=["read"])[1]
    return walkthrough.Walkthrough(api_client.Hub(URL, URL, token), cast, Console(quiet=True), [])


def test_a_promotion_takes_olga_and_bob(demo: walkthrough.Walkthrough, alias: Alias, candidate: AdapterVersion) -> None:
    assert demo.olga.rest.patch(f"aliases/{alias.name}/", json={"policy": walkthrough.PROTECTED}).status_code == 200
    body = {"alias": alias.name, "candidate": candidate.served_name, "steps": [{"weight": 50}], "reason": "better"}
    rollout = demo.olga.post("rollouts/", body)
    demo.approve(rollout)
    Rollout.objects.get().started(by=RECONCILER)
    demo.promote(rollout, candidate.served_name)
    alias.refresh_from_db()
    assert alias.version == candidate
    who = AuditEvent.objects.filter(tag__in=["rollout:promoted", "approval:approved"]).order_by("id")
    assert [*who.values_list("tag", "actor_name")] == [("approval:approved", "bernd"), ("rollout:promoted", "olga")]
