"""Approvals, tokens, service accounts, webhooks, deliveries, clusters, members, aliases: narrowed by their address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts import service_accounts
from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.webhooks.models import Delivery, Webhook
from registry.models import AdapterVersion, Alias, Cluster, Rollout
from tests.builders import member
from training.models import Evaluation


@pytest.fixture
def listed(
    project: Project, cluster: Cluster, alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> Client:
    """Two of each: one that is found, and one that is not."""
    by = alice.as_actor()
    for name, account in (("nightly", "robot"), ("weekly", "drone")):
        service_user = service_accounts.create(project, account, "trainer", by=by)
        ApiToken.issue(name=name, project=project, scopes=["read"], created_by=alice, account=service_user)
        fields = {"url": f"https://{name}.example/hook", "events": [f"{name}:*"], "created_by": alice}
        webhook = Webhook.objects.create(project=project, **fields)
    ApiToken.objects.filter(name="weekly").update(revoked_at=alias.created_at)
    Webhook.objects.filter(pk=webhook.pk).update(revoked_at=alias.created_at)
    for each in Webhook.objects.all():
        status = "failed" if "weekly" in each.url else "pending"
        Delivery.objects.create(webhook=each, event=AuditEvent.objects.about(alias)[0], status=status)
    Cluster.create(project=project, slug="edge", base_model=cluster.base_model, engine="vllm", by=by)
    member("emil", project, "operator")
    alias.set_policy({"quorum": 1}, by=by)
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 50}], reason="try", by=by)
    rollout.request_approval(reason="Lower loss.", by=by)
    for version in (alias.version, candidate):
        Evaluation.launch(version, prompts=["what is owed?"], by=by)
    client.force_login(alice)
    return client


def rows_of_page(client: Client, name: str, query: str) -> list[Any]:
    answer = client.get(f"{reverse(name)}?{query}")
    assert answer.status_code == 200
    return list(answer.context["page"])


CASES = [
    ("approvals", "q=lower&status=pending&kind=promotion&sort=-asked", lambda row: row.reason, ["Lower loss."]),
    ("approvals", "status=used", lambda row: row.reason, []),
    ("tokens", "sort=name", lambda row: row.name, ["nightly", "weekly"]),
    ("tokens", "sort=-name", lambda row: row.name, ["weekly", "nightly"]),
    ("tokens", "state=revoked", lambda row: row.name, ["weekly"]),
    ("tokens", "q=robot&state=in+use", lambda row: row.name, ["nightly"]),
    ("tokens", "state=waiting", lambda row: row.name, []),
    ("service-accounts", "sort=-name&role=trainer", lambda row: row.user.username, ["eu/robot", "eu/drone"]),
    ("service-accounts", "q=drone", lambda row: row.user.username, ["eu/drone"]),
    ("webhooks", "q=nightly:", lambda row: row.events, [["nightly:*"]]),
    ("webhooks", "state=revoked", lambda row: row.events, [["weekly:*"]]),
    ("deliveries", "status=failed&q=alias", lambda row: row.webhook.events, [["weekly:*"]]),
    ("clusters", "sort=-name", lambda row: row["cluster"].slug, ["edge", "cpu"]),
    ("clusters", "engine=vllm&q=tiny", lambda row: row["cluster"].slug, ["edge"]),
    ("evaluations", "q=.v2-&status=queued", lambda row: row.version.number, [2]),
    ("evaluations", "status=failed", lambda row: row.version.number, []),
    ("evaluations", "sort=requested", lambda row: row.version.number, [1, 2]),
    ("settings", "q=emil&role=operator", lambda row: row.user.username, ["emil"]),
    ("settings", "role=auditor", lambda row: row.user.username, []),
    ("overview", "q=complia&sort=-name", lambda row: row.name, ["compliance"]),
    ("overview", "q=other", lambda row: row.name, []),
    ("overview", "state=protected", lambda row: row.name, ["compliance"]),
    ("overview", "state=unprotected", lambda row: row.name, []),
]


@pytest.mark.parametrize(("name", "query", "value_of", "expected"), CASES)
def test_the_address_decides(
    listed: Client, name: str, query: str, value_of: Callable[[Any], Any], expected: list[Any]
) -> None:
    assert [value_of(row) for row in rows_of_page(listed, name, query)] == expected


def test_the_deliveries_of_one_address_have_an_address(listed: Client) -> None:
    webhook = Webhook.objects.get(revoked_at=None)
    link = f"{reverse('deliveries')}?webhook={webhook.pk}"
    assert link in listed.get(reverse("webhooks")).content.decode()
    assert [row.webhook for row in rows_of_page(listed, "deliveries", f"webhook={webhook.pk}")] == [webhook]
    assert len(rows_of_page(listed, "deliveries", "webhook=nonsense")) == 2


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
def test_a_search_without_a_hit_offers_the_way_back(listed: Client, name: str) -> None:
    page = listed.get(f"{reverse(name)}?q=nothing-is-called-so").content.decode()
    assert "matches." in page
    assert f'href="{reverse(name)}">Show all</a>' in page


def test_a_page_of_a_list_has_an_address(listed: Client, project: Project, alice: User) -> None:
    for number in range(60):
        ApiToken.issue(name=f"page-{number:02}", project=project, scopes=["read"], created_by=alice)
    assert [row.name for row in rows_of_page(listed, "tokens", "q=page-&sort=name&page=2")][-1] == "page-59"
    assert 'href="?q=page-&amp;sort=name&amp;page=2"' in listed.get("/tokens/?q=page-&sort=name").content.decode()


def test_what_an_alias_served_is_searched(listed: Client, alias: Alias) -> None:
    answer = listed.get(reverse("alias", args=[alias.name]), {"q": "v1"})
    assert [move.version for move in answer.context["page"]] == [alias.version]
    assert "No move matches." in listed.get(reverse("alias", args=[alias.name]), {"q": "nobody"}).content.decode()


def test_who_had_which_role_is_searched(listed: Client) -> None:
    tenures = listed.get(reverse("audit-roles"), {"q": "ROBOT trainer"}).context["page"]
    assert [(each.user, each.role, each.project.slug) for each in tenures] == [("eu/robot", "trainer", "eu")]
    assert "No role matches." in listed.get(reverse("audit-roles"), {"q": "nobody"}).content.decode()


def test_settings_lead_to_all_protected_aliases(listed: Client, alias: Alias) -> None:
    assert "protected aliases</a>" not in listed.get(reverse("settings")).content.decode()
    fields = {"project": alias.project, "version": alias.version, "cluster": alias.cluster}
    Alias.objects.bulk_create(
        [Alias(name=f"safe-{n:02}", policy={"quorum": 2}, **fields) for n in range(20)]
        + [Alias(name="free", **fields), Alias(name="zero", policy={"quorum": 0}, **fields)]
    )
    link = f'<a href="{reverse("overview")}?state=protected">All 21 protected aliases</a>'
    assert link in listed.get(reverse("settings")).content.decode()
    assert len(rows_of_page(listed, "overview", "state=protected&page=2")) == 6
    assert [row.name for row in rows_of_page(listed, "overview", "state=unprotected&sort=name")] == ["free", "zero"]
