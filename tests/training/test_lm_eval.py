"""Tasks of lm-eval: which are offered, what the harness is given and says, and promotions that wait for a score."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.cli.model_card import measured
from adapterhub.core.errors import Conflict
from adapterhub.jobs.models import JobStatus
from registry.evidence.comparison import measurements
from registry.models import AdapterVersion, Alias, Rollout, VersionEvaluation
from registry.models.evaluation import require_scores
from registry.rollouts.controller import promote_or_pause
from tests.tiny_model import save_base_model
from training.lm.error_reporting import BadInput
from training.lm.events import Events
from training.models import Dataset, Evaluation
from training.recipes import lm_eval_task
from training.recipes.lm_eval_task import Task

POLICY = {"evaluations": [{"task": "articles", "metric": "acc", "at_least": 0.5}]}


@pytest.fixture
def tasks(settings: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "articles.yaml").write_text("task: articles\ndataset_path: json\n")
    (folder / "law.yml").write_text("group: 'law'\ntask:\n  - articles\n")
    settings.LM_EVAL_TASKS, settings.LM_EVAL_PYTHON = str(folder), sys.executable
    return folder


def post(version: AdapterVersion, ci: str, **changes: Any) -> Any:
    body = {"project": "eu", "version": version.served_name, "task": "articles", **changes}
    client = Client(headers={"Authorization": f"Bearer {ci}"})
    return client.post("/api/v1/evaluations/", body, content_type="application/json")


def test_without_tasks_or_harness_it_is_refused_by_name(version: AdapterVersion, ci: str, settings: Any) -> None:
    error = post(version, ci).json()["errors"][0]
    assert (error["field"], error["code"]) == ("task", "no_lm_eval")
    assert "ADAPTERHUB_LM_EVAL_TASKS" in error["message"]
    settings.LM_EVAL_TASKS = "/nowhere"
    error = post(version, ci).json()["errors"][0]
    assert (error["field"], error["code"]) == ("task", "no_lm_eval")
    assert "ADAPTERHUB_LM_EVAL_PYTHON" in error["message"]


@pytest.mark.parametrize(
    ("changes", "field", "code"),
    [
        ({"task": "arc_easy"}, "task", "unknown_task"),
        ({"task": "../articles"}, "task", "unknown_task"),
        ({"prompts": ["a"]}, "prompts", "not_with_task"),
        ({"pattern": "a"}, "pattern", "not_with_task"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused_by_field(
    version: AdapterVersion, ci: str, tasks: Path, changes: dict[str, Any], field: str, code: str
) -> None:
    answer = post(version, ci, **changes)
    error = answer.json()["errors"][0]
    assert (answer.status_code, error["field"], error["code"]) == (422, field, code)
    if code == "unknown_task":
        assert "there are articles, law" in error["message"]


def test_a_version_without_a_cluster_or_an_approval_is_refused(
    version: AdapterVersion, ci: str, tasks: Path, request: pytest.FixtureRequest
) -> None:
    error = post(version, ci).json()["errors"][0]
    assert (error["field"], error["code"]) == ("version", "not_served")
    alias: Alias = request.getfixturevalue("alias")
    candidate: AdapterVersion = request.getfixturevalue("candidate")
    Alias.objects.filter(pk=alias.pk).update(policy={"quorum": 1})
    error = post(candidate, ci).json()["errors"][0]
    assert (error["field"], error["code"]) == ("version", "version_not_approved")


def test_the_child_asks_with_a_token_of_its_own_that_ends_with_the_job(
    alias: Alias, version: AdapterVersion, ci: str, tasks: Path, alice: User, tmp_path: Path
) -> None:
    job = Evaluation.objects.get(pk=post(version, ci).json()["id"])
    module, path = job.child_arguments(tmp_path)
    record = json.loads(Path(path).read_bytes())
    assert (module, Path(path).stat().st_mode & 0o777) == ("training.recipes.lm_eval_task", 0o600)
    assert (record["task"], record["model"]) == ("articles", version.served_name)
    token = ApiToken.objects.usable().get(name=f"evaluation {job.pk}")
    assert (token.scopes, record["token"].split("_")[1]) == (["infer"], str(token.pk))
    job.cancel(by=alice.as_actor())
    assert not ApiToken.objects.usable().filter(pk=token.pk).exists()
    assert job.status == JobStatus.CANCELLED


def task(tmp_path: Path, tasks: Path, python: str) -> Task:
    record = {
        "base_model": str(save_base_model(tmp_path / "base")),
        "output": str(tmp_path / "out"),
        "python": python,
        "tasks": str(tasks),
        "task": "articles",
        "model": "dora.v1-0",
        "router": "http://127.0.0.1:1",
        "token": "ah_1_x",
        "max_length": 64,
        "served_within_s": 1,
    }
    return Task.read(record)


@pytest.mark.parametrize(
    ("python", "words"), [("/nowhere/python", "cannot be started"), (sys.executable, "no lm-eval")]
)
def test_a_worker_without_the_harness_says_what_to_install(
    tmp_path: Path, tasks: Path, python: str, words: str
) -> None:
    with pytest.raises(BadInput, match=rf"^python: .*{words}"):
        lm_eval_task.run(task(tmp_path, tasks, python), Events(None))


def test_the_harness_is_given_no_secret_of_the_worker(
    tmp_path: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://secret")
    given = lm_eval_task.environment(task(tmp_path, tasks, sys.executable))
    assert given["OPENAI_API_KEY"] == "ah_1_x"
    assert "secret" not in str(given)


def test_a_version_that_nobody_serves_is_named(tmp_path: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_task, "ASK_AGAIN_S", 0.1)
    with pytest.raises(BadInput, match=r"version: dora\.v1-0 does not answer .*the router does not respond"):
        lm_eval_task.wait_until_served(task(tmp_path, tasks, sys.executable))


def test_scores_are_read_by_metric_and_other_filters_keep_their_name() -> None:
    row = {"alias": "articles", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 1, "ppl,none": float("nan")}
    assert lm_eval_task.scores_in(row) == {"acc": 0.5, "em,strict": 1.0}


def scored(version: AdapterVersion, acc: float) -> None:
    metrics = {"task": {"name": "articles", "samples": 12}, "scores": {"acc": acc}}
    VersionEvaluation.objects.create(version=version, base_digest=version.base_digest, metrics=metrics)


def test_a_move_needs_the_score_that_the_policy_asks_for(
    alias: Alias, version: AdapterVersion, candidate: AdapterVersion, alice: User
) -> None:
    by = alice.as_actor()
    alias.set_policy(POLICY, by=by)
    with pytest.raises(Conflict, match="was never measured on the task articles") as refused:
        alias.move(candidate, expected=version, reason="quick", by=by)
    assert refused.value.code == "evaluation_objects"
    scored(candidate, 0.4)
    with pytest.raises(Conflict, match=r"acc of .* is 0\.4; the policy asks for 0\.5"):
        alias.move(candidate, expected=version, reason="quick", by=by)
    scored(candidate, 0.6)
    alias.move(candidate, expected=version, reason="measured", by=by)
    alias.move(version, expected=candidate, reason="back at night", by=by)


def test_a_rollout_is_paused_with_the_reason_when_the_score_is_missing(
    alias: Alias, candidate: AdapterVersion, alice: User
) -> None:
    by = alice.as_actor()
    alias.set_policy(POLICY, by=by)
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=by)
    rollout.started(by=by)
    promote_or_pause(rollout, {"reason": "good", "by": by, "expected_generation": rollout.generation})
    rollout.refresh_from_db()
    assert rollout.status == "paused"
    assert "was never measured on the task articles" in rollout.status_reason
    assert AuditEvent.objects.filter(tag="rollout:paused").exists()
    scored(candidate, 0.9)
    rollout.resume(reason="measured", by=by)
    promote_or_pause(rollout, {"reason": "good", "by": by, "expected_generation": rollout.generation})
    alias.refresh_from_db()
    assert alias.version == candidate


def test_a_bound_may_be_the_greatest_score_and_a_metric_that_is_not_there_is_named(version: AdapterVersion) -> None:
    scored(version, 0.4)
    require_scores(version, {"evaluations": [{"task": "articles", "metric": "acc", "at_most": 0.4}]})
    for metric, bound, words in (("acc", 0.3, "the policy allows 0.3"), ("ppl", 9, "has no metric ppl")):
        with pytest.raises(Conflict, match=words):
            require_scores(version, {"evaluations": [{"task": "articles", "metric": metric, "at_most": bound}]})


def test_scores_stand_beside_the_figures_of_an_evaluation(version: AdapterVersion) -> None:
    arms = {"version": {"loss": 2.5}}
    VersionEvaluation.objects.create(version=version, base_digest=version.base_digest, metrics={"arms": arms})
    scored(version, 0.4)
    scored(version, 0.6)
    expected = {"evaluated loss": 2.5, "evaluated articles acc": 0.6}
    assert measurements([version]) == {version.pk: expected}
    job = {"metrics": {"task": {"name": "articles"}, "scores": {"acc": 0.6}}, "against": None}
    assert measured({}, [job]) == {"lm-eval articles, acc": "0.6000"}


def test_the_scores_stand_on_the_versions_page(version: AdapterVersion, alice: User, client: Client) -> None:
    scored(version, 0.5)
    client.force_login(alice)
    page = client.get(f"/adapters/{version.adapter.slug}/v{version.number}/").content.decode()
    assert "<strong>articles</strong> of lm-eval" in page
    assert "0.5000" in page
    assert "held-out loss</th>" not in page


def planned(ci: str, dataset: Dataset) -> list[tuple[str, str]]:
    """The field and code of each refusal that `adapterhub plan` would name for a gate by a task."""
    gates = {"tasks": [{"task": "articles", "at_least": {"acc": 0.5}}]}
    body = {"project": "eu", "adapter": {"slug": "dora"}, "base": "tiny", "dataset": dataset.pk, "gates": gates}
    client = Client(headers={"Authorization": f"Bearer {ci}"})
    refusals = client.post("/api/v1/plans/", body, content_type="application/json").json()["refusals"]
    return [(one["field"], one["code"]) for one in refusals]


@pytest.mark.usefixtures("tasks", "adapter")
def test_a_plan_knows_before_the_training_that_no_cluster_could_be_asked(ci: str, dataset: Dataset) -> None:
    assert planned(ci, dataset) == [("gates.tasks", "not_served")]


@pytest.mark.usefixtures("tasks")
def test_a_plan_knows_before_the_training_that_nobody_may_ask_the_version(
    ci: str, alias: Alias, dataset: Dataset, alice: User
) -> None:
    assert planned(ci, dataset) == []
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    assert planned(ci, dataset) == [("gates.tasks", "version_not_approved")]
    Project.objects.update(named_versions="any")
    assert planned(ci, dataset) == []
