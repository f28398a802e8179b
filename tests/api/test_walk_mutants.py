"""The walk is worth something: it fails as soon as one permission check is gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest

from adapterhub.accounts.models import Project, User
from adapterhub.api import pages, permissions
from tests.api import test_walk
from tests.api.test_walk import world

__all__ = ["world"]


def test_without_the_check_of_scopes_a_viewer_may_write(
    world: dict[str, Any], project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(permissions, "require_scope", lambda *_: None)
    monkeypatch.setattr(test_walk, "CALLS", [("api:alias-move", "POST"), ("api:adapter-detail", "PATCH")])
    with pytest.raises(AssertionError, match="expected a refusal"):
        test_walk.test_a_role_gets_what_the_table_grants_and_no_more(world, project, "viewer", tmp_path)


def test_without_the_border_of_projects_an_outsider_reads(
    world: dict[str, Any], charlie: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def everybody_s(request: HttpRequest) -> Any:
        return Project.objects.all()

    monkeypatch.setattr(pages, "projects_of", everybody_s)
    monkeypatch.setattr(test_walk, "CALLS", [("alias", "GET"), ("rollout", "GET")])
    with pytest.raises(AssertionError, match="another tenant gets 200"):
        test_walk.test_strangers_and_other_tenants_get_nothing(world, charlie, tmp_path)
