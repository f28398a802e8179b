"""Every page for a member, for an outsider and without JavaScript."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias, Rollout
from tests.builders.pages import one_of_everything
from training.models import Dataset, TrainingRun
from training.models.hyperparameters import TABLE


@pytest.fixture
def world(alias: Alias, candidate: AdapterVersion, dataset: Dataset, alice: User) -> dict[str, Any]:
    return one_of_everything(alias, candidate, dataset, alice.as_actor())


def test_every_page_shows_in_few_queries(
    world: dict[str, Any], alice: User, client: Client, django_assert_max_num_queries: Any
) -> None:
    client.force_login(alice)
    for name, args in world.items():
        # One of them asks how large the events are that the page shows.
        with django_assert_max_num_queries(13):
            response = client.get(reverse(name, args=args))
        assert response.status_code == 200, name
        assert b"<h1>" in response.content
        # A phone hides an empty cell with its label; white space would show the label alone.
        assert re.findall(rb"<td[^>]* data-label[^>]*>\s+</td>", response.content) == [], name


def test_an_outsider_sees_nothing_of_it(world: dict[str, Any], charlie: User, client: Client) -> None:
    client.force_login(charlie)
    for name in ("adapter", "version", "alias", "rollout", "cluster", "dataset", "training-run", "rank-analysis"):
        assert client.get(reverse(name, args=world[name])).status_code == 404, name
    for name in ("overview", "adapters", "rollouts", "datasets", "audit"):
        assert b"dora" not in client.get(reverse(name)).content.lower(), name


def test_without_a_login_every_page_asks_for_one(world: dict[str, Any], client: Client) -> None:
    for name, args in world.items():
        response = client.get(reverse(name, args=args))
        assert response.status_code == 302
        assert response["Location"].startswith("/login/"), name


def test_a_training_is_launched_by_the_form(
    dataset: Dataset, version: AdapterVersion, alice: User, client: Client
) -> None:
    client.force_login(alice)
    fields = {name: entry.default for name, entry in TABLE.items()}
    body = {"adapter": version.adapter.pk, "dataset": dataset.pk, "method": "lora", **fields}
    response = client.post(reverse("new-training-run"), body)
    run = TrainingRun.objects.get()
    assert response["Location"] == reverse("training-run", args=[run.pk])
    assert (run.status, run.created_by) == ("queued", alice)
    refused = client.post(reverse("new-training-run"), {**body, "steps": 0})
    assert refused.status_code == 422
    assert b"greater than or equal to 1" in refused.content


def test_a_version_is_promoted_by_the_pages(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    client.force_login(alice)
    opened = client.post(reverse("promote", args=["dora", 2]), {"alias": alias.pk, "weight": 50, "reason": "better"})
    rollout = Rollout.objects.get()
    assert opened["Location"] == reverse("rollout", args=[rollout.pk])
    rollout.started(by=alice.as_actor())
    client.post(reverse("move-rollout", args=[rollout.pk, "promote"]), {"reason": "holds"})
    alias.refresh_from_db()
    assert alias.version == candidate
    client.post(reverse("move-rollout", args=[rollout.pk, "rollback"]), {"reason": "does not hold"})
    alias.refresh_from_db()
    assert alias.version == rollout.stable


def test_a_refused_verb_says_why_and_leads_back(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    client.force_login(alice)
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=alice.as_actor())
    page = reverse("rollout", args=[rollout.pk])
    verb = reverse("move-rollout", args=[rollout.pk, "promote"])
    response = client.post(verb, {"reason": "early"}, headers={"referer": f"http://testserver{page}"}, follow=True)
    assert response.redirect_chain == [(page, 302)]
    assert b"it cannot become promoted" in response.content.lower()


def test_a_viewer_changes_nothing(alias: Alias, candidate: AdapterVersion, bob: User, client: Client) -> None:
    client.force_login(bob)
    body = {"alias": alias.pk, "weight": 50, "reason": "sneak"}
    assert client.post(reverse("promote", args=["dora", 2]), body).status_code == 403
    assert not Rollout.objects.exists()
    assert client.get(reverse("audit")).status_code == 403


def test_a_dataset_with_a_broken_line_is_refused_on_the_page(alice: User, project: Any, client: Client) -> None:
    from django.core.files.uploadedfile import SimpleUploadedFile

    client.force_login(alice)
    file = SimpleUploadedFile("rows.jsonl", b'{"text": "fine"}\n' * 16 + b"{broken\n")
    response = client.post(reverse("datasets"), {"project": project.pk, "file": file})
    assert response.status_code == 422
    assert b"Line 17" in response.content
    assert not Dataset.objects.exists()


def test_the_admin_edits_no_history(alias: Alias, client: Client, db: None) -> None:
    root = User.objects.create_superuser("root", password="a-long-root-password")
    client.force_login(root)
    for path in ("audit/auditevent", "registry/adapterversion", "registry/alias", "registry/aliasmove"):
        listing = client.get(f"/admin/{path}/")
        assert listing.status_code == 200
        assert b"Add" not in listing.content.split(b"content-main")[1]
        pk = alias.version.pk if "version" in path else alias.pk
        assert client.post(f"/admin/{path}/{pk}/delete/", {"post": "yes"}).status_code in (302, 403)
    assert Alias.objects.filter(pk=alias.pk).exists()
