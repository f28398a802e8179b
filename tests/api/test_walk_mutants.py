"""The walk is worth something: it fails as soon as one permission check is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest

from adapterhub.accounts.models import Project, User
from adapterhub.api import pages, permissions
from tests.api.rights import faults_of_role, faults_towards_outsiders


@pytest.mark.threat("A6")
def test_without_the_check_of_scopes_a_viewer_may_write(
    world: dict[str, Any], project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permissions, "require_scope", lambda *_: None)
    writing = [("api:alias-move", "POST"), ("api:adapter-detail", "PATCH")]
    assert "expected a refusal" in "\n".join(faults_of_role("viewer", world, project, tmp_path, writing))


@pytest.mark.threat("A6")
def test_without_the_border_of_projects_an_outsider_reads(
    world: dict[str, Any], charlie: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everybody_s(request: HttpRequest) -> Any:
        return Project.objects.all()

    monkeypatch.setattr(pages, "projects_of", everybody_s)
    reading = [("alias", "GET"), ("rollout", "GET")]
    assert "another tenant gets 200" in "\n".join(faults_towards_outsiders(world, charlie, tmp_path, reading))
