"""A page says what is so now, in words: no share that nobody gets, no comparison of what was not measured, no code."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils.timezone import now

from adapterhub.accounts.models import Project, User
from registry.models import Adapter, AdapterVersion, Alias, Rollout
from tests.builders.rollouts import opened
from tests.pages.realistic import cast
from training.models import Dataset, RankAnalysis, TrainingRun
from training.pages.forms import PART_HELP
from training.runs.launch import launch_run


@pytest.fixture(autouse=True)
def signed_in(alice: User, client: Client) -> None:
    client.force_login(alice)


def page_of(client: Client, path: str) -> str:
    return " ".join(client.get(path).content.decode().split())


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("running", "dora v2 gets 10 %"),
        ("awaiting_approval", "dora v2 gets 10 %"),
        ("paused", "everybody gets dora v1"),
        ("loading", "everybody gets dora v1"),
    ],
)
def test_the_overview_names_a_share_only_while_somebody_gets_it(
    alias: Alias, candidate: AdapterVersion, alice: User, client: Client, status: str, text: str
) -> None:
    rollout = opened(alias, candidate, alice)
    Rollout.objects.filter(pk=rollout.pk).update(status=status, weight=10)
    card = page_of(client, "/").partition("Rollouts in progress</h2>")[2].partition("</section>")[0]
    assert text in card
    assert card.count(" gets ") == 1


def test_runs_of_which_one_was_measured_are_not_said_to_differ_in_their_rows(
    adapter: Adapter, dataset: Dataset, alice: User, client: Client
) -> None:
    one, other = (launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor()) for _ in range(2))
    hyperparameters = {**one.hyperparameters, "eval_tokens": 64}
    TrainingRun.objects.filter(pk=one.pk).update(loss_before=2.0, loss_after=1.0, hyperparameters=hyperparameters)
    path = f"{reverse('compare-training-runs', args=[one.pk])}?to={other.pk}"
    sentence = "They were evaluated on different rows"
    assert sentence not in page_of(client, path)
    TrainingRun.objects.filter(pk=other.pk).update(loss_before=2.0, loss_after=1.5)
    assert sentence in page_of(client, path)


def test_every_setting_of_a_run_and_of_an_analysis_says_what_it_is(
    adapter: Adapter, dataset: Dataset, alice: User, client: Client
) -> None:
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    settings = page_of(client, f"/training/{run.pk}/").partition("Configuration</h2>")[2].partition("<dt>priority")[0]
    rows = settings.partition("<dt>ranks</dt>")[2].split("<dt>")[1:]
    assert len(rows) > 10
    assert [row for row in rows if 'class="helptext"' not in row] == []
    analysis = RankAnalysis.launch(
        project=adapter.project,
        base_model=adapter.base_model,
        dataset=dataset,
        budget={"uniform_rank": 4},
        settings={"power": 2.0},
        by=alice.as_actor(),
    )
    page = page_of(client, f"/rank-analyses/{analysis.pk}/")
    assert [name for name in analysis.parts if name != "rank_min" and name not in PART_HELP] == []
    assert f'<strong>2.0</strong>, chosen <span class="helptext">{PART_HELP["power"]}</span>' in page


def test_the_page_of_a_dataset_that_is_checked_reloads_itself_at_the_end(dataset: Dataset, client: Client) -> None:
    path = reverse("dataset", args=[dataset.pk])
    Dataset.objects.filter(pk=dataset.pk).update(status="checking")
    assert f'hx-get="{path}?seen=checking"' in page_of(client, path)
    polls = {"seen": "checking"}
    still = client.get(path, polls, headers={"HX-Request": "true"})
    assert (still.content, "HX-Refresh" in still) == (b"", False)
    Dataset.objects.filter(pk=dataset.pk).update(status="ready")
    assert client.get(path, polls, headers={"HX-Request": "true"})["HX-Refresh"] == "true"


def test_an_internal_error_has_a_page_that_names_the_request(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("training.pages.overview.open_alarms", fail)
    client.raise_request_exception = False
    response = client.get("/")
    page = response.content.decode()
    assert response.status_code == 500
    assert "Something went wrong here" in page
    assert f"<code>{response['X-Request-ID']}</code>" in page
    assert 'href="/"' in page


def test_who_gave_a_role_is_named_in_words(project: Project, client: Client) -> None:
    cast(project)
    page = page_of(client, reverse("audit-roles"))
    assert "system:" not in page
    assert "The system (" in page


def test_a_step_that_is_done_does_not_say_how_far_it_is(alias: Alias, client: Client) -> None:
    page = page_of(client, reverse("first-steps"))
    for step in page.split("<li")[1:]:
        assert not ("done</span>" in step and ("No replica has answered yet" in step or "on its way" in step))


def test_the_times_of_the_admin_have_the_products_form(alice: User, client: Client) -> None:
    at = now().replace(year=2026, month=3, day=1, hour=22, minute=30)
    User.objects.filter(pk=alice.pk).update(is_superuser=True, is_staff=True, date_joined=at, last_login=at)
    page = page_of(client, f"/admin/accounts/user/{alice.pk}/change/")
    assert "1 Mar 2026, 22:30 UTC" in page
    assert "p.m." not in page
