"""Limits of a project at the routers: set, changed and removed by REST and page; bounded, recorded and published."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import IntegrityError, transaction
from django.test import Client

from adapterhub.accounts.models import ApiToken, Membership, Project, User
from adapterhub.audit.models import AuditEvent
from registry.serving.routing_table import routing_table
from serving_client import RateLimit, RoutingTable
from tests.builders.people import member


@pytest.fixture
def lead(client: Client, alice: User) -> Client:
    client.force_login(alice)
    return client


def changed(client: Client, **fields: Any) -> Any:
    return client.patch("/api/v1/projects/eu/", {"reason": "busy", **fields}, content_type="application/json")


def routed() -> tuple[RateLimit | None, float | None]:
    """Return the limits of project eu as routers read them."""
    table = RoutingTable.from_json(routing_table().to_json())
    return table.limits.get("eu"), table.tokens_per_min.get("eu")


def test_limits_are_set_changed_removed_and_recorded(lead: Client, project: Project) -> None:
    assert routed() == (None, None)
    answer = changed(lead, requests_per_s=0.25, tokens_per_min=600).json()
    assert (answer["requests_per_s"], answer["tokens_per_min"]) == (0.25, 600)
    assert routed() == (RateLimit(0.25, 1), 600.0)
    changed(lead, requests_per_s=4)
    assert routed() == (RateLimit(4, 8), 600.0), "what is not named stays"
    changed(lead, requests_per_s=None, tokens_per_min=None)
    assert routed() == (None, None)
    first, second, third = AuditEvent.objects.filter(tag="project:changed").order_by("pk")
    assert (first.before, first.reason) == ({"requests_per_s": None, "tokens_per_min": None}, "busy")
    assert (second.before, second.after) == (
        {"requests_per_s": 0.25, "tokens_per_min": 600},
        {"requests_per_s": 4.0, "tokens_per_min": 600},
    )
    assert third.after == {"requests_per_s": None, "tokens_per_min": None}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"requests_per_s": 0}, "requests_per_s"),
        ({"requests_per_s": -1}, "requests_per_s"),
        ({"requests_per_s": "NaN"}, "requests_per_s"),
        ({"tokens_per_min": -1}, "tokens_per_min"),
        ({"tokens_per_min": 2**31}, "tokens_per_min"),
        ({"requests_per_s": 51}, "requests_per_s"),
        ({"tokens_per_min": 6001}, "tokens_per_min"),
        ({"tokens_per_min": 60, "reason": ""}, "reason"),
    ],
)
def test_a_limit_that_could_not_hold_is_refused_by_name(
    lead: Client, project: Project, settings: Any, fields: dict[str, Any], field: str
) -> None:
    settings.PROJECT_REQUESTS_PER_S, settings.PROJECT_TOKENS_PER_MIN = 50, 6000
    answer = changed(lead, **fields)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert not AuditEvent.objects.filter(tag="project:changed").exists()


def test_a_change_of_nothing_is_refused(lead: Client, project: Project) -> None:
    assert (changed(lead).status_code, "named_versions" in changed(lead).json()["detail"]) == (422, True)


def test_routers_keep_the_lower_of_its_own_and_the_installations(lead: Client, project: Project, settings: Any) -> None:
    settings.PROJECT_REQUESTS_PER_S, settings.PROJECT_TOKENS_PER_MIN = 50, 6000
    assert routed() == (RateLimit(50, 100), 6000.0), "without limits of its own"
    assert changed(lead, requests_per_s=50, tokens_per_min=60).status_code == 200
    settings.PROJECT_REQUESTS_PER_S = 20
    assert routed() == (RateLimit(20, 40), 60.0), "the installation's was lowered since"


def test_the_database_takes_no_limit_of_nothing(project: Project) -> None:
    for limit in ({"requests_per_s": 0}, {"tokens_per_min": 0}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Project.objects.update(**limit)


def test_only_an_admin_of_the_project_changes_limits(lead: Client, project: Project, charlie: User) -> None:
    other = Client()
    other.force_login(charlie)
    assert changed(other, requests_per_s=1).status_code == 404
    other.force_login(member("op", project, Membership.Role.OPERATOR))
    assert changed(other, requests_per_s=1).status_code == 403
    assert other.post("/projects/eu/limit/", {"requests_per_s": 1, "reason": "x"}).status_code == 404
    text = ApiToken.issue(name="ci", project=project, scopes=["operate"])[1]
    bearer = Client(headers={"Authorization": f"Bearer {text}"})
    assert (changed(bearer, requests_per_s=1).status_code, routed()) == (403, (None, None))


def test_the_page_shows_and_changes_limits(lead: Client, project: Project, settings: Any) -> None:
    settings.PROJECT_TOKENS_PER_MIN = 6000
    assert "at most 6,000 tokens a minute from it." in text_of(lead.get("/projects/eu/"))
    for tokens, words in ((0, "greater than or equal to 1"), (6001, "at most at 6,000")):
        refused = lead.post("/projects/eu/limit/", {"requests_per_s": "", "tokens_per_min": tokens, "reason": "x"})
        assert (refused.status_code, words in text_of(refused)) == (422, True), words
    lead.post("/projects/eu/limit/", {"requests_per_s": 2.5, "tokens_per_min": 60, "reason": "x"})
    page = text_of(lead.get("/projects/eu/"))
    assert "2.5 requests a second and 60 tokens a minute" in page
    assert 'value="2.5"' in page
    lead.post("/projects/eu/limit/", {"requests_per_s": "", "tokens_per_min": "", "reason": "x"})
    assert routed() == (None, 6000.0)


def text_of(answer: Any) -> str:
    return " ".join(answer.content.decode().split())
