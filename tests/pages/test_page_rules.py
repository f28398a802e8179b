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
from tests.markup import markup
from tests.pages.plans import PLAN, RACED
from training.models import Compression, Dataset, RankAnalysis, TrainingRun
from training.models.hyperparameters import TABLE


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
    form = client.get(reverse("datasets")).context["form"]
    assert list(form.fields["project"].queryset) == [project]
    explorer = markup(client.get(reverse("audit"), {"verify": 1}))
    assert (explorer.count(" events ·"), explorer.count("eu: <a")) == (1, 1)
    file = SimpleUploadedFile("broken.jsonl", b"{broken\n")
    assert client.post(reverse("datasets"), {"project": project.pk, "file": file}).status_code == 422


def test_a_viewer_sees_no_audit_trail_on_the_overview(alias: Alias, bob: User, alice: User, client: Client) -> None:
    client.force_login(bob)
    assert b"created the alias" not in client.get(reverse("overview")).content
    client.force_login(alice)
    assert b"created the alias" in client.get(reverse("overview")).content


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
    alias: Alias,
    version: AdapterVersion,
    candidate: AdapterVersion,
    make_version: Callable[..., Any],
    alice: User,
    client: Client,
) -> None:
    client.force_login(alice)
    offer = client.get(reverse("version", args=["dora", 2])).content.decode()
    assert f"{reverse('alias', args=['eu.compliance'])}?version={candidate.pk}" in offer
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


def test_an_alias_offers_its_newest_versions_and_the_one_that_the_address_names(
    alias: Alias,
    candidate: AdapterVersion,
    make_version: Callable[..., Any],
    alice: User,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry.pages.forms.OFFERED", 1)
    newest = make_version(candidate.adapter, seed=3)
    client.force_login(alice)
    page = reverse("alias", args=["compliance"])
    plain, named = client.get(page).content.decode(), client.get(page, {"version": candidate.pk}).content.decode()
    assert (f'<option value="{newest.pk}">' in plain, f'<option value="{candidate.pk}"' in plain) == (True, False)
    assert f'<option value="{candidate.pk}" selected>' in named
    assert client.get(page, {"version": "9" * 30}).status_code == 200


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


@pytest.fixture
def analysis(dataset: Dataset, adapter: Adapter, alice: User) -> RankAnalysis:
    """One that has succeeded, with the plan of another process."""
    launched = RankAnalysis.launch(
        project=adapter.project,
        base_model=adapter.base_model,
        dataset=dataset,
        budget={"uniform_rank": 4},
        rank_max=8,
        quantum=2,
        by=alice.as_actor(),
    )
    RankAnalysis.objects.filter(pk=launched.pk).update(plan=PLAN, status="succeeded")
    launched.refresh_from_db()
    return launched


def test_the_slider_plans_another_budget_with_and_without_javascript(
    analysis: RankAnalysis, alice: User, client: Client
) -> None:
    client.force_login(alice)
    own = markup(client.get(reverse("rank-analysis", args=[analysis.pk])))
    assert '<span class="badge still"' in own
    assert "follow the plan" not in own
    assert "<strong>0.004</strong> had the lowest loss in the probe" in own
    assert "0.008" not in own
    assert "at the edge of the rates that were tried" in own
    assert "768 of 768" in own
    assert 'min="1" max="8" value="4"' in own
    whole = client.get(reverse("rank-analysis", args=[analysis.pk]), {"uniform_rank": 6}).content.decode()
    part = client.get(reverse("rank-analysis-plan", args=[analysis.pk]), {"uniform_rank": 6}).content.decode()
    for html in (whole, part):
        assert "1,152 of 1,152" in html
        assert f"rank_analysis={analysis.pk}&amp;dataset={analysis.dataset_id}&amp;uniform_rank=6" in html
    assert "<html" in whole
    assert "<html" not in part
    refused = client.get(reverse("rank-analysis", args=[analysis.pk]), {"uniform_rank": 9}).content.decode()
    assert "too large" in refused
    assert "768 of 768" in refused


def test_a_race_is_shown_as_a_bracket_with_curves(analysis: RankAnalysis, alice: User, client: Client) -> None:
    RankAnalysis.objects.filter(pk=analysis.pk).update(plan=RACED, preset="race")
    client.force_login(alice)
    own = " ".join(client.get(reverse("rank-analysis", args=[analysis.pk])).content.decode().split())
    assert "4 candidates trained on the same rows and were scored on 12 others" in own
    assert "it spent 5,000 of the 6,000 that it might, of a run of 40,000" in own
    assert "0.003, from the race" in own
    assert own.count('class="curve line') == 1  # the other kind of plan has one finite loss alone
    for words in ("winner", "runner-up", "chosen: the smaller one", "diverged", "loss after 40 steps", "at the edge"):
        assert words in own, words
    page = client.get(reverse("new-training-run"), {"rank_analysis": analysis.pk}).content.decode()
    assert "0.003 is what the analysis&#x27; race advises." in page


def test_the_form_begins_with_the_rate_of_the_probes_lowest_loss(
    analysis: RankAnalysis, alice: User, client: Client
) -> None:
    client.force_login(alice)
    page = client.get(reverse("new-training-run"), {"rank_analysis": analysis.pk}).content.decode()
    assert "0.004 had the lowest loss in the analysis&#x27; probe" in page
    assert 'value="0.004"' in page
    for nonsense in ("nonsense", "00000000-0000-0000-0000-000000000000"):
        assert (
            "lowest loss" not in client.get(reverse("new-training-run"), {"rank_analysis": nonsense}).content.decode()
        )


def test_a_run_of_the_form_trains_the_other_budget(
    analysis: RankAnalysis, adapter: Adapter, alice: User, client: Client
) -> None:
    client.force_login(alice)
    fields = {name: entry.default for name, entry in TABLE.items()}
    body = {
        "adapter": adapter.pk,
        "dataset": analysis.dataset_id,
        "rank_analysis": analysis.pk,
        "method": "lora",
        **fields,
    }
    refused = client.post(reverse("new-training-run"), {**body, "uniform_rank": 9})
    assert refused.status_code == 422
    assert b"too large" in refused.content
    assert client.post(reverse("new-training-run"), {**body, "uniform_rank": 6}).status_code == 302
    run = TrainingRun.objects.get()
    assert run.rank_plan()["r"] == analysis.reallocate({"uniform_rank": 6})["r"]
    assert run.rank_plan() != {name: PLAN[name] for name in run.rank_plan()}
    page = client.get(reverse("training-run", args=[run.pk])).content.decode()
    assert "for uniform rank 6" in page


def test_an_analysis_of_chosen_parts_is_launched_by_the_form(
    dataset: Dataset, adapter: Adapter, alice: User, client: Client
) -> None:
    client.force_login(alice)
    body = {
        "base_model": adapter.base_model_id,
        "dataset": dataset.pk,
        "preset": "default",
        "uniform_rank": 4,
        "rank_max": 8,
        "quantum": 2,
        "samples": 16,
        "kinds": "all",
        "probe_rates": "2e-3, 4e-3",
        "probe_steps": 3,
        "target_modules": "up_proj,down_proj",
    }
    refused = client.post(reverse("new-rank-analysis"), {**body, "objective": "linear", "target_modules": "up"})
    assert refused.status_code == 422
    assert b"the base model has" in refused.content
    response = client.post(reverse("new-rank-analysis"), body)
    analysis = RankAnalysis.objects.get()
    assert response["Location"] == reverse("rank-analysis", args=[analysis.pk])
    assert analysis.settings == {
        "kinds": "all",
        "probe_rates": [0.002, 0.004],
        "probe_steps": 3,
        "target_modules": ["up_proj", "down_proj"],
    }
    assert "0.002, 0.004" in client.get(response["Location"]).content.decode()


def test_a_version_is_compressed_by_its_page(version: AdapterVersion, alice: User, bob: User, client: Client) -> None:
    page, verb = reverse("version", args=["dora", 1]), reverse("compress-version", args=["dora", 1])
    client.force_login(bob)
    assert b"Make it smaller" not in client.get(page).content
    assert client.post(verb, {"uniform_rank": 2}).status_code == 403
    client.force_login(alice)
    assert b"Make it smaller" in client.get(page).content
    response = client.post(verb, {"uniform_rank": 2})
    job = Compression.objects.get()
    assert response["Location"] == reverse("compression", args=[job.pk])
    assert (job.source, job.budget) == (version, {"uniform_rank": 2})
    assert b"Compression of dora v1" in client.get(response["Location"]).content
    client.post(reverse("cancel-compression", args=[job.pk]), {"reason": "not needed"})
    job.refresh_from_db()
    assert job.status == "cancelled"


def test_a_verb_on_a_rollout_that_changed_since_is_refused(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client
) -> None:
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=alice.as_actor())
    rollout.started(by=alice.as_actor())
    old_generation = rollout.generation
    rollout.set_weight(40, reason="faster", by=alice.as_actor())
    client.force_login(alice)
    promote = reverse("move-rollout", args=[rollout.pk, "promote"])
    assert client.post(promote, {"reason": "early", "expected_generation": old_generation}).status_code == 409
    assert client.post(promote, {"reason": "seen", "expected_generation": rollout.generation}).status_code == 302
