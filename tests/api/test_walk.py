"""Every route of the URL configuration x every role x projects: what is not granted here is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.core.tenancy import Scope
from tests.api.rights import NEEDS, READ, call, faults_of_role, faults_towards_outsiders, shows_or_does
from tests.builders.walk import CALLS, ROUTES, address

# Each walk makes the exports of a version. The two ends of the table are walked first, those between in the long run.
QUICK = (Membership.Role.ADMIN, Membership.Role.VIEWER)


@pytest.mark.threat("A5")
@pytest.mark.parametrize(
    "role", [pytest.param(role, marks=[] if role in QUICK else pytest.mark.slow) for role in Membership.Role.values]
)
@pytest.mark.slow
def test_a_role_gets_what_the_table_grants_and_no_more(
    world: dict[str, Any], project: Project, role: str, tmp_path: Path
) -> None:
    assert faults_of_role(role, world, project, tmp_path) == []


@pytest.mark.threat("A5")
def test_strangers_and_other_tenants_get_nothing(world: dict[str, Any], charlie: User, tmp_path: Path) -> None:
    assert faults_towards_outsiders(world, charlie, tmp_path) == []


FOR_PEOPLE = {
    "api:invitation-list",
    "api:erasure-approve",
    "api:erasure-reject",
    "api:token-approve",
    "api:approval-break-glass",
    "api:blind-test-vote",
    "api:approval-approve",
    "api:approval-reject",
    "api:approval-review",
}


@pytest.mark.threat("A5")
@pytest.mark.slow
def test_a_token_gets_what_its_scopes_grant(world: dict[str, Any], project: Project, tmp_path: Path) -> None:
    """A token of scope read is a viewer; with every scope it still cannot approve."""
    wrong = []
    for scopes in (["read"], Scope.values):
        token = ApiToken.issue(name="walk", project=project, scopes=scopes, created_by=None)[1]
        client = Client(headers={"Authorization": f"Bearer {token}"}, raise_request_exception=False)
        for name, method in CALLS:
            need = NEEDS.get(f"{name} {method}", READ if method == "GET" else None)
            url = address(name, world) if name.startswith("api:") and need else None
            if url:
                answer = call(client, name, method, url, tmp_path)
                may = need in scopes and name not in FOR_PEOPLE
                if shows_or_does(answer, name, method) != may:
                    wrong.append(f"{scopes} {name} {method}: {answer.status_code}")
    assert wrong == []


def test_the_table_names_only_routes_that_exist() -> None:
    assert {key.split()[0] for key in NEEDS} <= set(ROUTES)
