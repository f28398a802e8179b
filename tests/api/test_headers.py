"""What a browser is told: policy of contents, no frames, no sniffing; and which hosts are answered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.conf import settings
from django.db import transaction
from django.test import Client

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag

TEMPLATES = Path(settings.ROOT) / "templates"
INLINE = re.compile(r"<style|\sstyle=|<script(?![^>]*\ssrc=)|\son[a-z]+=|javascript:", re.IGNORECASE)


@pytest.mark.threat("H2")
@pytest.mark.parametrize("path", ["/login/", "/", "/audit/", "/api/docs/", "/admin/"])
def test_every_page_has_a_policy_that_allows_no_inline_script(alice: User, client: Client, path: str) -> None:
    if path != "/login/":
        client.force_login(alice)
    answer = client.get(path)
    rules = dict(rule.strip().split(" ", 1) for rule in answer["Content-Security-Policy"].split(";"))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert "unsafe" not in answer["Content-Security-Policy"]
    assert (answer["X-Frame-Options"], answer["X-Content-Type-Options"]) == ("DENY", "nosniff")


@pytest.mark.threat("H3")
def test_no_page_of_ours_needs_more_than_the_policy_allows() -> None:
    hits = [
        f"{path.name}: {hit.group()}" for path in TEMPLATES.rglob("*.html") for hit in INLINE.finditer(path.read_text())
    ]
    assert hits == []


def test_the_documentation_of_the_api_has_no_script_in_its_text(client: Client) -> None:
    scripts = re.findall(r"<script([^>]*)>", client.get("/api/docs/").content.decode())
    assert scripts
    assert all("src=" in attributes for attributes in scripts)


@pytest.mark.threat("H1")
@pytest.mark.parametrize("path", ["/", "/login/", "/admin/login/", "/api/v1/projects/", "/audit/"])
def test_a_host_that_is_not_ours_is_refused(db: None, path: str) -> None:
    assert Client(raise_request_exception=False).get(path, headers={"host": "evil.example"}).status_code == 400


@pytest.mark.threat("H2")
def test_a_form_without_its_token_is_refused(alice: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    assert client.post("/logout/").status_code == 403
    assert client.post("/api/v1/projects/", {"slug": "x"}, content_type="application/json").status_code == 403


@pytest.mark.parametrize("script", ["<img src=x onerror=alert(1)>", "'\"><script>alert(1)</script>"])
def test_a_name_with_a_script_is_shown_as_text(alice: User, client: Client, project: Project, script: str) -> None:
    """What somebody typed comes back as text on the audit page."""
    with transaction.atomic():
        AuditEvent.record(
            Tag.ADAPTER_CHANGED,
            alice,
            by=alice.as_actor(),
            project=project,
            reason=script,
            after={"description": script},
        )
    client.force_login(alice)
    assert script not in client.get("/audit/").content.decode()
