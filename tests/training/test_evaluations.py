"""A version is measured by a child process, and promotions ask what was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Conflict
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, AdapterVersion, Alias, Rollout, VersionEvaluation
from registry.models.evaluation import require_no_objection
from tests.builders import rows, write_jsonl
from tests.tiny_model import save_base_model
from training.models import Dataset, Evaluation, TrainingRun
from training.runs.launch import launch_run
from training.worker.runner import work

pytestmark = pytest.mark.slow

FAST = {"rank": 4, "batch_size": 2, "max_length": 32, "learning_rate": 0.05, "eval_tokens": 64, "warmup_steps": 0}


@pytest.fixture
def trained(fresh_database: str, project: Project, alice: User, tmp_path: Any) -> TrainingRun:
    from registry.models import BaseModel

    model = BaseModel.objects.create(slug="tiny-llama", source="tiny-llama")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    by = alice.as_actor()
    line = Adapter.create(project=project, slug="trained", base_model=model, by=by)
    file = write_jsonl(tmp_path / "long.jsonl", rows(120))
    data = Dataset.create(project=project, name="long", file=file, filename="long.jsonl", by=by)
    for steps in (1, 30):
        run = launch_run(adapter=line, dataset=data, hyperparameters={**FAST, "steps": steps}, by=by)
        work()
    run.refresh_from_db()
    return run


def test_a_version_is_measured_beside_its_base_and_another_version(trained: TrainingRun, ci: str, alice: User) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}"})
    second, first = AdapterVersion.objects.order_by("-number")
    body = {
        "project": "eu",
        "version": second.served_name,
        "against": first.served_name,
        "dataset": trained.dataset_id,
        "prompts": ["the bank shall"],
        "pattern": "hours",
    }
    answer = client.post("/api/v1/evaluations/", body, content_type="application/json")
    assert (answer.status_code, answer.json()["metrics"]) == (202, None)
    for _ in range(2):
        work()
    job = client.get(f"/api/v1/evaluations/{answer.json()['id']}/").json()
    assert (job["status"], job["message"]) == ("succeeded", "")
    arms, differences = job["metrics"]["arms"], job["metrics"]["differences"]
    assert set(arms) == {"base", "version", "against"}
    assert arms["version"]["loss"] < arms["against"]["loss"]
    assert arms["base"]["forgetting"] == 0
    assert len(arms["version"]["examples"]) == job["metrics"]["examples"]
    for other in ("base", "against"):
        difference = differences[other]
        assert difference["mean"] == pytest.approx(arms["version"]["loss"] - arms[other]["loss"], abs=1e-4)
        assert difference["low"] <= difference["mean"] <= difference["high"] < 0
    assert arms["version"]["token_f1"] >= arms["base"]["token_f1"]
    assert {"exact_match", "pattern"} <= set(arms["version"])
    assert arms["version"]["answers"][0]["prompt"] == "the bank shall"
    assert AuditEvent.objects.filter(tag="evaluation:succeeded").count() == 1

    require_no_objection(second, first)
    page = Client()
    page.force_login(alice)
    html = page.get(f"/adapters/trained/v{second.number}/").content.decode()
    assert "this version minus it" in html


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({}, "dataset", "nothing_to_measure"),
        ({"dataset": 10**6}, "dataset", "unknown_dataset"),
        ({"prompts": ["x"], "pattern": "("}, "pattern", "bad_pattern"),
        ({"prompts": ["x"], "version": "none.v1-0"}, "version", "unknown_version"),
        ({"prompts": ["x"], "against": "itself"}, "against", "same_version"),
        ({"prompts": ["x" * 9000]}, "prompts", "bad_prompts"),
    ],
)
def test_a_bad_request_is_refused_by_field(
    version: AdapterVersion, ci: str, changes: dict[str, Any], field: str, code: str
) -> None:
    body = {"project": "eu", "version": version.served_name, **changes}
    if body.get("against") == "itself":
        body["against"] = version.served_name
    client = Client(headers={"Authorization": f"Bearer {ci}"})
    answer = client.post("/api/v1/evaluations/", body, content_type="application/json")
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["field"], error["code"]) == (422, field, code)
    assert not Evaluation.objects.exists()


def measured(version: AdapterVersion, against: AdapterVersion | None, low: float) -> VersionEvaluation:
    change = {"mean": low + 0.1, "low": low, "high": low + 0.2}
    return VersionEvaluation.objects.create(
        version=version,
        against=against,
        base_digest=version.base_digest,
        dataset_digest="d",
        metrics={"differences": {"against": change}},
    )


def test_what_was_measured_to_be_worse_is_not_promoted(alias: Alias, candidate: AdapterVersion, alice: User) -> None:
    by = alice.as_actor()
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=by)
    rollout.started(by=by)
    measured(candidate, alias.version, 0.05)
    with pytest.raises(Conflict, match="is worse than dora v1"):
        rollout.promote(reason="go", by=by)
    measured(candidate, alias.version, -0.05)
    rollout.promote(reason="go", by=by)
    alias.refresh_from_db()
    assert alias.version == candidate


@pytest.fixture
def qlora(adapter: Adapter, version: AdapterVersion, make_version: Callable[..., AdapterVersion]) -> AdapterVersion:
    return make_version(adapter, seed=3, method="qlora")


def test_a_qlora_serves_nobody_before_it_is_measured_on_the_16_bit_base(
    alias: Alias, version: AdapterVersion, qlora: AdapterVersion, alice: User
) -> None:
    by, refused = alice.as_actor(), pytest.raises(Conflict, match="never measured on the 16-bit one")
    with refused:
        alias.move(qlora, expected=version, reason="quick", by=by)
    with refused:
        Alias.create(project=alias.project, name="new", cluster=alias.cluster, version=qlora, policy={}, by=by)
    rollout = Rollout.create(alias=alias, candidate=qlora, steps=[{"weight": 5}], reason="try", by=by)
    rollout.started(by=by)
    with refused:
        rollout.promote(reason="go", by=by)
    measured(qlora, None, 0)
    rollout.promote(reason="go", by=by)
    alias.refresh_from_db()
    assert alias.version == qlora


def test_a_move_asks_what_was_measured_except_on_the_way_back(
    alias: Alias, version: AdapterVersion, candidate: AdapterVersion, alice: User
) -> None:
    by = alice.as_actor()
    measured(candidate, version, 0.05)
    with pytest.raises(Conflict, match="is worse than dora v1"):
        alias.move(candidate, expected=version, reason="quick", by=by)
    measured(candidate, version, -0.05)
    alias.move(candidate, expected=version, reason="better now", by=by)
    measured(version, candidate, 0.05)
    alias.move(version, expected=candidate, reason="back at night", by=by)
    assert alias.version == version


def test_an_evaluation_is_cancelled(version: AdapterVersion, alice: User) -> None:
    job = Evaluation.launch(version, prompts=["x"], by=alice.as_actor())
    job.cancel(by=alice.as_actor())
    job.cancel(by=alice.as_actor())
    assert job.status == JobStatus.CANCELLED
