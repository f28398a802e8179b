"""What a page must never do: cross a tenant's border, fail on a fresh installation, or show more than the role may."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse

from adapterhub.accounts.models import Membership, Project, User
from registry.models import Adapter, AdapterVersion, Alias, Rollout
from tests.builders import rows, write_jsonl
from tests.pages.plans import PLAN
from training.hyperparameters import TABLE
from training.models import Dataset, RankAnalysis, TrainingRun


@pytest.fixture
def foreign_dataset(alice: User, tmp_path: Path) -> Dataset:
    """Of another project, in which alice may only read."""
    other = Project.objects.create(slug="us", name="American compliance")
    Membership.objects.create(project=other, user=alice, role=Membership.Role.VIEWER)
    file = write_jsonl(tmp_path / "foreign.jsonl", rows(60))
    return Dataset.create(project=other, name="foreign", file=file, filename="rows.jsonl", by=alice.as_actor())


def test_a_run_takes_no_dataset_of_another_project(
    foreign_dataset: Dataset, adapter: Adapter, alice: User, client: Client
) -> None:
    client.force_login(alice)
    fields = {name: entry.default for name, entry in TABLE.items()}
    body = {"adapter": adapter.pk, "dataset": foreign_dataset.pk, **fields}
    assert client.post(reverse("new-training-run"), body).status_code == 422
    assert not TrainingRun.objects.exists()


def test_the_first_upload_of_an_installation_needs_no_folder(alice: User, project: Project, client: Client) -> None:
    client.force_login(alice)
    shutil.rmtree(settings.WORK_DIR, ignore_errors=True)
    lines = "".join(f'{{"text": "paragraph {number}"}}\n' for number in range(60)).encode()
    file = SimpleUploadedFile("rows.jsonl", lines)
    response = client.post(reverse("datasets"), {"project": project.pk, "file": file})
    assert response["Location"] == reverse("dataset", args=[Dataset.objects.get().pk])


def test_somebody_with_two_roles_sees_one_project(
    alice: User, project: Project, dataset: Dataset, adapter: Adapter, client: Client
) -> None:
    Membership.objects.create(project=project, user=alice, role=Membership.Role.TRAINER)
    client.force_login(alice)
    assert client.get(reverse("datasets")).content.count(b"<option value") == 2
    assert client.get(reverse("audit"), {"verify": 1}).content.count(b"eu:") == 1
    file = SimpleUploadedFile("broken.jsonl", b"{broken\n")
    assert client.post(reverse("datasets"), {"project": project.pk, "file": file}).status_code == 422


def test_a_viewer_sees_no_audit_trail_on_the_overview(alias: Alias, bob: User, alice: User, client: Client) -> None:
    client.force_login(bob)
    assert b"alias:created" not in client.get(reverse("overview")).content
    client.force_login(alice)
    assert b"alias:created" in client.get(reverse("overview")).content


@pytest.mark.parametrize("name", ["new-training-run", "new-rank-analysis"])
def test_a_viewer_is_offered_no_form_that_would_be_refused(
    name: str, dataset: Dataset, adapter: Adapter, bob: User, client: Client
) -> None:
    client.force_login(bob)
    assert client.get(reverse(name)).status_code == 403
    assert client.post(reverse(name), {}).status_code == 403
    assert b'type="file"' not in client.get(reverse("datasets")).content


def test_the_poll_of_an_analysis_that_ended_reloads_the_page(
    dataset: Dataset, adapter: Adapter, alice: User, client: Client
) -> None:
    analysis = RankAnalysis.launch(
        project=adapter.project,
        base_model=adapter.base_model,
        dataset=dataset,
        budget={"uniform_rank": 8},
        by=alice.as_actor(),
    )
    client.force_login(alice)
    page = reverse("rank-analysis", args=[analysis.pk])
    polled = client.get(page, {"seen": "queued"}, headers={"HX-Request": "true"})
    assert "HX-Refresh" not in polled
    assert b"<html" not in polled.content
    analysis.cancel(by=alice.as_actor())
    assert client.get(page, {"seen": "queued"}, headers={"HX-Request": "true"})["HX-Refresh"] == "true"


def test_an_alias_is_moved_by_its_page_only_from_what_was_seen(
    alias: Alias, version: AdapterVersion, candidate: AdapterVersion, make_version: Callable[..., Any], alice: User,
    client: Client,
) -> None:  # fmt: skip
    client.force_login(alice)
    offer = client.get(reverse("version", args=["dora", 2])).content.decode()
    assert f"{reverse('alias', args=['compliance'])}?version={candidate.pk}" in offer
    move = reverse("move-alias", args=["compliance"])
    body = {"version": candidate.pk, "expected": version.pk, "reason": "measured"}
    assert client.post(move, body)["Location"] == reverse("alias", args=["compliance"])
    alias.refresh_from_db()
    assert alias.version == candidate
    third = make_version(candidate.adapter, seed=3)
    stale = client.post(move, {"version": third.pk, "expected": version.pk, "reason": "late"})
    assert stale.status_code == 409
    alias.refresh_from_db()
    assert alias.version == candidate


def test_a_viewer_moves_no_alias(
    alias: Alias, version: AdapterVersion, candidate: AdapterVersion, bob: User, client: Client
) -> None:
    client.force_login(bob)
    body = {"version": candidate.pk, "expected": version.pk, "reason": "sneak"}
    assert client.post(reverse("move-alias", args=["compliance"]), body).status_code == 403
    assert b"<h2>Serve another version" not in client.get(reverse("alias", args=["compliance"])).content


def test_a_refusal_never_leads_to_another_site(
    alias: Alias, candidate: AdapterVersion, bob: User, client: Client
) -> None:
    client.force_login(bob)
    body = {"alias": alias.pk, "weight": 50, "reason": "sneak"}
    referer = "http://testserver//elsewhere.example/"
    response = client.post(reverse("promote", args=["dora", 2]), body, headers={"referer": referer})
    assert not response.headers.get("Location", "").startswith("//")


def test_another_budget_is_a_look_and_offers_no_training(
    dataset: Dataset, adapter: Adapter, alice: User, client: Client
) -> None:
    analysis = RankAnalysis.launch(
        project=adapter.project,
        base_model=adapter.base_model,
        dataset=dataset,
        budget={"uniform_rank": 8},
        by=alice.as_actor(),
    )
    RankAnalysis.objects.filter(pk=analysis.pk).update(plan=PLAN)
    client.force_login(alice)
    page = reverse("rank-analysis", args=[analysis.pk])
    assert b"Train with this plan" in client.get(page).content
    look = client.get(page, {"uniform_rank": 4})
    assert b"a look at another budget" in look.content
    assert b"Train with this plan" not in look.content


def test_a_verb_on_a_rollout_that_changed_since_is_refused(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=alice.as_actor())
    rollout.started(by=alice.as_actor())
    seen = rollout.generation
    rollout.set_weight(40, reason="faster", by=alice.as_actor())
    client.force_login(alice)
    promote = reverse("move-rollout", args=[rollout.pk, "promote"])
    assert client.post(promote, {"reason": "early", "expected_generation": seen}).status_code == 409
    assert client.post(promote, {"reason": "seen", "expected_generation": rollout.generation}).status_code == 302
