"""Usage by project, alias, version and day, from the routers' reports and the trainings that ended."""

from __future__ import annotations

import csv
import io
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils.timezone import now

from adapterhub import environment
from adapterhub.accounts.models import ApiToken, Project
from registry.models import AdapterVersion, Alias
from registry.rollouts.outcome_ingest import keep
from serving_client.reports import Outcome
from tests.builders.rest import client as rest
from tests.builders.rest import problem
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run


def answer(number: int, alias: Alias, *, days: int = 0, status: int = 200, cold: bool = False) -> Outcome:
    return Outcome(
        response_id=f"r{number}",
        at=(now() - timedelta(days=days)).timestamp(),
        project="eu",
        alias=alias.name,
        version=alias.version.served_name,
        arm="none",
        sticky=True,
        unit=None,
        status=status,
        ttft_ms=None,
        total_ms=10,
        prompt_tokens=1_000,
        completion_tokens=200,
        cold=cold,
    )


@pytest.fixture
def reported(alias: Alias, dataset: Dataset, alice: Any, settings: Any) -> Alias:
    settings.PRICES = environment.prices("ADAPTERHUB_PRICES", {"ADAPTERHUB_PRICES": "prompt=1000,gpu_hour=3.6"})
    reports = [answer(1, alias, cold=True), answer(2, alias), answer(3, alias, days=1, status=502)]
    keep(reports)
    keep(reports[:2])
    run = launch_run(adapter=alias.version.adapter, dataset=dataset, by=alice.as_actor())
    ended = now()
    TrainingRun.objects.filter(pk=run.pk).update(
        status="failed", started_at=ended - timedelta(seconds=100), finished_at=ended, hyperparameters={"devices": 2}
    )
    return alias


def test_a_report_that_comes_twice_is_counted_once(reported: Alias, ci: str) -> None:
    rows = rest(ci).get("/api/v1/usage/?by=day,version").json()["results"]
    assert [row["requests"] for row in rows if row["version"]] == [1, 2]
    today = next(row for row in rows if row["requests"] == 2)
    assert today == {
        "day": now().date().isoformat(),
        "version": reported.version.served_name,
        "requests": 2,
        "failures": 0,
        "cold_loads": 1,
        "prompt_tokens": 2_000,
        "completion_tokens": 400,
        "gpu_seconds": 0,
        "cost": 2.0,
    }
    (training,) = (row for row in rows if not row["version"])
    assert (training["gpu_seconds"], training["cost"]) == (200.0, 0.2)


def test_it_is_summed_by_what_is_asked_for(reported: Alias, ci: str) -> None:
    (row,) = rest(ci).get("/api/v1/usage/?by=project").json()["results"]
    assert (row["project"], row["requests"], row["failures"], row["cost"]) == ("eu", 3, 1, 3.2)
    today = now().date().isoformat()
    (row,) = rest(ci).get(f"/api/v1/usage/?by=alias&alias=compliance&since={today}").json()["results"]
    assert (row["alias"], row["requests"]) == ("compliance", 2)


def test_it_comes_as_csv(reported: Alias, ci: str) -> None:
    sheet = rest(ci).get("/api/v1/usage/csv/?by=project,alias")
    assert sheet["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(sheet.content.decode())))
    assert {(row["project"], row["alias"], row["requests"]) for row in rows} == {
        ("eu", "", "0"),
        ("eu", "compliance", "3"),
    }


def test_the_page_shows_what_rest_answers(reported: Alias, client: Client, alice: Any) -> None:
    client.force_login(alice)
    page = client.get("/usage/?by=project,day").content.decode()
    assert all(cell in page for cell in ("2,000", "400", "200", now().date().isoformat(), "usage/csv/?by=project"))
    assert client.get("/usage/?since=2026-02-01&until=2026-01-01").status_code == 422
    assert "Nothing was served" in client.get("/usage/?since=2020-01-01&until=2020-02-01").content.decode()


def test_another_tenant_sees_nothing_of_it(reported: Alias, candidate: AdapterVersion) -> None:
    other = Project.objects.create(slug="other", name="Other")
    http = rest(ApiToken.issue(name="other", project=other, scopes=["read"])[1])
    assert http.get("/api/v1/usage/").json()["results"] == []
    assert http.get("/api/v1/usage/?project=eu").json()["results"] == []


@pytest.mark.parametrize(
    "query", ["by=colour", "by=day,day", "since=yesterday", "since=2026-02-01&until=2026-01-01", "month=1"]
)
def test_a_bad_query_is_refused(query: str, ci: str) -> None:
    assert rest(ci).get(f"/api/v1/usage/?{query}").status_code == 422


def test_without_prices_there_is_no_cost(alias: Alias, ci: str) -> None:
    keep([answer(9, alias)])
    assert rest(ci).get("/api/v1/usage/").json()["results"][0]["cost"] is None
    problem(rest(ci).get("/api/v1/usage/?since=2020-01-01"), 422, "invalid")


@pytest.mark.parametrize("prices", ["prompt", "prompt=cheap", "prompt=-1", "lunch=3"])
def test_a_bad_price_is_named(prices: str) -> None:
    with pytest.raises(environment.BadSetting, match="is no price"):
        environment.prices("ADAPTERHUB_PRICES", {"ADAPTERHUB_PRICES": prices})
