"""What a rank analysis is asked for is checked before it is queued, and its plan answers other budgets at once."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from rest_framework.test import APIClient

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Invalid
from registry.models import Adapter, AdapterVersion, BaseModel, Cluster
from tests.pages.plans import PLAN, RACED
from training.models import Compression, Dataset, RankAnalysis, TrainingRun
from training.runs.launch import launch_run
from training.tars.__main__ import parse
from training.tars.config import AnalysisConfig

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def api(ci: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {ci}")
    return client


@pytest.fixture
def body(base_model: BaseModel, dataset: Dataset) -> dict[str, Any]:
    return {
        "project": "eu",
        "base_model": "tiny",
        "dataset": dataset.pk,
        "budget": {"uniform_rank": 4},
        "rank_max": 8,
        "quantum": 2,
    }


@pytest.fixture
def analysis(api: APIClient, body: dict[str, Any]) -> RankAnalysis:
    """One that has succeeded."""
    assert api.post("/api/v1/rank-analyses/", body, format="json").status_code == 202
    RankAnalysis.objects.update(plan=PLAN, status="succeeded")
    return RankAnalysis.objects.get()


def test_the_default_preset_and_its_bounds_are_filled_in(api: APIClient, body: dict[str, Any]) -> None:
    answer = api.post("/api/v1/rank-analyses/", body, format="json").json()
    assert (answer["preset"], answer["rank_min"]) == ("default", 0)
    assert answer["settings"] == PLAN["settings"]
    arguments = RankAnalysis.objects.get().child_arguments(Path("/job"))
    assert "--reference" not in arguments
    assert arguments[arguments.index("--preset") + 1] == "default"


def test_chosen_parts_reach_the_child(api: APIClient, body: dict[str, Any]) -> None:
    chosen = {
        "divergence": "gaussian_diag",
        "kinds": "all",
        "power": 0.5,
        "probe_steps": 3,
        "probe_rates": [0.002, 0.004],
        "target_modules": ["up_proj", "q_proj"],
    }
    answer = api.post("/api/v1/rank-analyses/", {**body, "settings": chosen}, format="json").json()
    assert answer["settings"] == {**PLAN["settings"], **chosen}
    arguments = RankAnalysis.objects.get().child_arguments(Path("/job"))
    assert "--reference" in arguments
    expected = {
        "--divergence=gaussian_diag",
        "--kinds=all",
        "--power=0.5",
        "--probe-steps=3",
        "--probe-rates=0.002,0.004",
        "--target-modules=up_proj,q_proj",
    }
    assert expected <= set(arguments)


def test_a_race_is_launched_for_the_run_to_come_and_shown(api: APIClient, body: dict[str, Any]) -> None:
    run = {"run_steps": 900, "run_batch_size": 4, "run_scheduler": "cosine", "race_share": 0.1, "race_rates": [0.001]}
    answer = api.post("/api/v1/rank-analyses/", {**body, "preset": "race", "settings": run}, format="json").json()
    assert (answer["preset"], answer["rank_min"]) == ("race", 0)
    analysis = RankAnalysis.objects.get()
    arguments = analysis.child_arguments(Path("/job"))
    assert {"--run-steps=900", "--run-batch-size=4", "--run-scheduler=cosine", "--race-share=0.1"} <= set(arguments)
    parsed = parse(arguments[1:])
    assert (parsed.preset, parsed.rank_min, parsed.run_steps, parsed.race_rates) == ("race", 0, 900, (0.001,))
    assert AnalysisConfig(preset="race", rank_min=parsed.rank_min).settings().objective == "uniform"
    RankAnalysis.objects.update(plan=RACED, status="succeeded")
    detail = api.get(f"/api/v1/rank-analyses/{analysis.pk}/").json()
    assert (detail["race"], detail["learning_rate"]) == (RACED["race"], 0.003)
    other = api.post(f"/api/v1/rank-analyses/{analysis.pk}/reallocate/", {"budget": {"uniform_rank": 6}}, format="json")
    assert other.json()["verdict_text"] == RACED["verdict_text"]


@pytest.mark.parametrize(
    ("changes", "field", "fragment"),
    [
        ({"settings": {"sensitvity": "probe"}}, "settings.sensitvity", "is unknown; known are"),
        ({"settings": {"sensitivity": "guess"}}, "settings.sensitivity", "must be one of probe"),
        ({"settings": {"sensitivity": "grad_norm"}}, "settings.objective", "needs a spectrum"),
        ({"settings": {"power": 0}}, "settings.power", "above 0"),
        ({"settings": {"power": "much"}}, "settings.power", "must be a number"),
        ({"settings": {"probe_steps": 0}}, "settings.probe_steps", "at least 1"),
        ({"settings": {"probe_steps": 2.5}}, "settings.probe_steps", "whole number"),
        ({"settings": {"probe_rates": [2]}}, "settings.probe_rates", "between 0 and 1"),
        ({"settings": {"probe_rates": "fast"}}, "settings.probe_rates", "between 0 and 1"),
        ({"settings": {"target_modules": ["no_proj"]}}, "settings.target_modules", "down_proj"),
        ({"settings": {"target_modules": [{}]}}, "settings.target_modules", "down_proj"),
        (
            {"settings": {"sensitivity": "spectrum", "probe_steps": 3}},
            "settings.probe_steps",
            "is a setting of the probe",
        ),
        ({"preset": "uniform", "settings": {"kinds": "mlp"}}, "settings.kinds", "measures nothing"),
        ({"rank_min": 3, "rank_max": 3}, "rank_min", "No multiple of 2"),
        ({"settings": {"race_share": 0.1}}, "settings.race_share", "is a setting of the race"),
        ({"preset": "race", "settings": {"kinds": "mlp"}}, "settings.kinds", "The race decides this"),
        ({"preset": "race", "rank_min": 4}, "rank_min", "The race decides this"),
        ({"preset": "race", "settings": {"race_share": 1.5}}, "settings.race_share", "at most 1"),
        ({"preset": "race", "settings": {"run_steps": 0}}, "settings.run_steps", "at least 1"),
        (
            {"preset": "race", "settings": {"run_scheduler": "square"}},
            "settings.run_scheduler",
            "must be one of linear",
        ),
        ({"preset": "race", "settings": {"race_rates": []}}, "settings.race_rates", "between 0 and 1"),
        ({"budget": {"uniform_rank": 12}}, "budget", "too large"),
        ({"budget": {"parameters": 40}}, "budget", "too small"),
    ],
)
def test_what_cannot_be_analysed_is_refused_by_its_field(
    api: APIClient, body: dict[str, Any], changes: dict[str, Any], field: str, fragment: str
) -> None:
    refused = api.post("/api/v1/rank-analyses/", {**body, **changes}, format="json")
    assert refused.status_code == 422, refused.json()
    (error,) = refused.json()["errors"]
    assert (error["field"], fragment in error["message"]) == (field, True), error
    assert not RankAnalysis.objects.exists()


def test_ranks_end_at_what_the_clusters_serve(
    api: APIClient, body: dict[str, Any], cluster: Cluster, base_model: BaseModel
) -> None:
    Cluster.objects.update(max_lora_rank=8)
    answer = api.post("/api/v1/rank-analyses/", {**body, "rank_max": 32}, format="json").json()
    assert answer["rank_max"] == 8


def test_rest_shows_the_plan_without_the_spectra(api: APIClient, analysis: RankAnalysis) -> None:
    detail = api.get(f"/api/v1/rank-analyses/{analysis.pk}/").json()
    (listed,) = api.get("/api/v1/rank-analyses/").json()["results"]
    other = api.post(f"/api/v1/rank-analyses/{analysis.pk}/reallocate/", {"budget": {"uniform_rank": 6}}, format="json")
    for answer in (detail, listed, other.json()):
        assert set(answer["modules"][0]) == {"name", "shape", "sensitivity", "divergence", "score", "rank"}
        for name in (
            "serving",
            "greedy_gap",
            "learning_rate",
            "probes",
            "stability",
            "verdict",
            "verdict_text",
            "seconds",
            "rank_pattern",
            "alpha_pattern",
            "parameters",
            "start_values",
        ):
            assert name in answer, name
        # The stored plan has the double, as plans had it before.
        assert (answer["learning_rate"], analysis.plan["learning_rate"]) == (0.004, 0.008)
    assert other.status_code == 200
    assert detail["parameters"] < other.json()["parameters"] <= other.json()["budget"]["parameters"]


def test_a_run_takes_another_budget_of_the_analysis(
    api: APIClient, analysis: RankAnalysis, adapter: Adapter, dataset: Dataset
) -> None:
    body = {"project": "eu", "adapter": "dora", "dataset": dataset.pk}
    alone = api.post("/api/v1/training-runs/", {**body, "budget": {"uniform_rank": 6}}, format="json")
    assert alone.json()["errors"][0]["field"] == "budget"
    body["rank_analysis"] = str(analysis.pk)
    huge = api.post("/api/v1/training-runs/", {**body, "budget": {"uniform_rank": 9}}, format="json")
    assert huge.json()["errors"][0]["field"] == "budget"
    wanted = api.post("/api/v1/training-runs/", {**body, "start_values": True}, format="json")
    assert wanted.json()["errors"][0]["field"] == "start_values"
    answer = api.post("/api/v1/training-runs/", {**body, "budget": {"uniform_rank": 6}}, format="json").json()
    assert (answer["budget"], answer["start_values"]) == ({"uniform_rank": 6}, False)
    event = AuditEvent.objects.filter(tag="training_run:requested").first()
    assert event.after["budget"] == {"uniform_rank": 6}
    run = TrainingRun.objects.get()
    assert run.rank_plan()["rank_pattern"] == analysis.reallocate({"uniform_rank": 6})["rank_pattern"]


def test_start_values_are_taken_unless_refused(
    analysis: RankAnalysis, adapter: Adapter, dataset: Dataset, alice: User
) -> None:
    RankAnalysis.objects.update(plan={**PLAN, "start_values": "ab" * 32})
    analysis.refresh_from_db()
    launch = {"adapter": adapter, "dataset": dataset, "rank_analysis": analysis, "by": alice.as_actor()}
    assert launch_run(**launch).takes_start_values
    assert not launch_run(**launch, start_values=False).takes_start_values
    assert launch_run(**launch).lineage()["start_values"] == "ab" * 32


def large_plan() -> dict[str, Any]:
    """224 modules of an 8B Llama, a spectrum of 64 values each."""
    shapes = {
        "q_proj": [4096, 4096],
        "k_proj": [1024, 4096],
        "v_proj": [1024, 4096],
        "o_proj": [4096, 4096],
        "gate_proj": [14336, 4096],
        "up_proj": [14336, 4096],
        "down_proj": [4096, 14336],
    }
    modules = [
        {
            "name": f"model.layers.{layer}.mlp.{kind}",
            "shape": shape,
            "score": 1.0,
            "weight": 1.0,
            "spectrum": [(1 + layer * shape[0] % 7) * 0.95**place for place in range(64)],
            "rank": 16,
        }
        for layer in range(32)
        for kind, shape in shapes.items()
    ]
    return {**PLAN, "modules": modules, "rank_max": 64, "quantum": 4}


def test_another_budget_of_an_8b_model_is_planned_within_a_second_and_without_torch() -> None:
    code = (
        "import json, sys, time\n"
        "from training.tars.allocation import reallocate\n"
        "plan = json.load(sys.stdin)\n"
        "reallocate(plan, 'uniform_rank', 9)\n"
        "began = time.process_time()\n"
        "found = reallocate(plan, 'uniform_rank', 16)\n"
        "print(json.dumps([time.process_time() - began, 'torch' in sys.modules, found['parameters']]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(large_plan()),
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    seconds, torch, parameters = json.loads(done.stdout)
    assert not torch
    assert seconds < 1.0
    assert 0 < parameters <= 16 * sum(sum(module["shape"]) for module in large_plan()["modules"])


def test_a_plan_from_before_the_settings_is_completed(analysis: RankAnalysis) -> None:
    migration = importlib.import_module("training.migrations.0004_older_plans")
    new = ("settings", "serving", "greedy_gap", "learning_rate", "probes", "start_values")
    old = {name: value for name, value in PLAN.items() if name not in new}
    RankAnalysis.objects.update(preset="seed", rank_min=2, plan={**old, "rank_min": 2})
    migration.complete(apps, None)
    analysis.refresh_from_db()
    assert analysis.plan["settings"] == analysis.parts
    assert analysis.reallocate({"uniform_rank": 6})["parameters"] > PLAN["parameters"]


@pytest.mark.parametrize(
    ("budget", "fragment"),
    [({"uniform_rank": 4}, "makes nothing smaller"), ({"parameters": 10}, "too small"), ({"bytes": 10}, "too small")],
)
def test_a_compression_that_makes_nothing_smaller_is_refused(
    api: APIClient, version: AdapterVersion, budget: dict[str, int], fragment: str
) -> None:
    refused = api.post("/api/v1/adapters/dora/versions/1/compress/", {"budget": budget}, format="json")
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert (error["field"], fragment in error["message"]) == ("budget", True)
    assert not Compression.objects.exists()


def test_a_compression_is_queued_shown_and_cancelled(api: APIClient, version: AdapterVersion, charlie: User) -> None:
    queued = api.post("/api/v1/adapters/dora/versions/1/compress/", {"budget": {"uniform_rank": 2}}, format="json")
    assert queued.status_code == 202
    job = queued.json()
    assert (job["status"], job["source"], job["version"]) == ("queued", version.served_name, None)
    assert api.get("/api/v1/compressions/").json()["results"] == [job]
    assert api.post(f"/api/v1/compressions/{job['id']}/cancel/").json()["status"] == "cancelled"
    assert AuditEvent.objects.filter(tag__startswith="compression:").count() == 2
    outside = APIClient()
    outside.force_authenticate(charlie)
    assert outside.get(f"/api/v1/compressions/{job['id']}/").status_code == 404
    assert (
        outside.post("/api/v1/adapters/dora/versions/1/compress/", {"budget": {"uniform_rank": 2}}).status_code == 404
    )


def test_an_archived_version_is_not_compressed(version: AdapterVersion, alice: User) -> None:
    version.archive(reason="old", by=alice.as_actor())
    with pytest.raises(Invalid, match="not ready"):
        Compression.launch(version, {"uniform_rank": 2}, by=alice.as_actor())
