"""`adapterhub plan` and `apply` against a live web process: what they refuse, find in place, and gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.audit.models import AuditEvent
from registry.models import Adapter, AdapterVersion, Alias, Rollout, VersionEvaluation
from tests.builders import rows, write_jsonl
from tests.cli.command import Command
from tests.waiting import wait_until
from training.models import Dataset, Evaluation, TrainingRun
from training.runs.launch import launch_run

FILE: dict[str, Any] = {"adapter": {"slug": "dora"}, "base": "tiny", "data": "rows.jsonl"}
ROLLOUT = {"alias": "compliance", "steps": [{"weight": 10}], "guardrails": [{"metric": "error_rate", "margin": 1}]}


def declare(folder: Path, **fields: Any) -> Path:
    file = folder / "adapterhub.yaml"
    file.write_text(yaml.safe_dump({**FILE, **fields}))
    return file


def made_by_a_run(adapter: Adapter, version: AdapterVersion, dataset: Dataset, by: Any, **chosen: Any) -> TrainingRun:
    """As if a worker had ended it."""
    run = launch_run(adapter=adapter, dataset=dataset, hyperparameters=chosen, by=by)
    TrainingRun.objects.filter(pk=run.pk).update(status="succeeded", version=version)
    return run


def test_a_wrong_file_names_its_fields(command: Command, tmp_path: Path) -> None:
    assert command("plan").returncode == 2
    bad = {
        "methode": "lora",
        "budget": {"bytes": 1, "parameters": 1},
        "rollout": {"alias": "a b", "steps": [{"weight": "10"}]},
    }
    declare(tmp_path, **bad)
    refused = command("plan")
    assert refused.returncode == 2
    for field in ("methode", "budget", "rollout.alias", "rollout.steps[0].weight"):
        assert f"adapterhub.yaml: {field}: " in refused.stderr, refused.stderr
    declare(tmp_path, method="dpo", gates={"quorum": 1})
    assert "gates: held-out answers are measured, and dpo learns from preferences" in command("plan").stderr
    (tmp_path / "adapterhub.yaml").write_text("a: [")
    assert command("apply", "--yes").returncode == 2
    declare(tmp_path)
    missing = command("plan", "--json")
    assert (missing.returncode, "adapterhub.yaml: data: rows.jsonl is neither" in missing.stderr) == (2, True)
    assert [fault["field"] for fault in json.loads(missing.stdout)["error"]["errors"]] == ["data"]


@pytest.mark.usefixtures("cluster")
def test_a_plan_changes_nothing_and_an_apply_asks(command: Command, adapter: Adapter, tmp_path: Path) -> None:
    declare(tmp_path, adapter={"slug": "new"}, rollout={**ROLLOUT, "cluster": "cpu"}, budget={"uniform_rank": 4})
    write_jsonl(tmp_path / "rows.jsonl", rows())
    before = AuditEvent.objects.count()
    planned = command("plan", "--json")
    assert [f"{one['action']} {one['kind']}" for one in json.loads(planned.stdout)["changes"]] == [
        "create adapter",
        "create dataset",
        "run rank analysis",
        "run training",
        "create alias",
    ]
    silent = command("apply")
    assert (silent.returncode, "--yes" in silent.stderr) == (2, True)
    assert (AuditEvent.objects.count(), Dataset.objects.count(), Adapter.objects.count()) == (before, 0, 1)
    declare(tmp_path, base="other")
    assert (command("plan").returncode, "base" in command("plan").stderr) == (2, True)


@pytest.mark.slow
def test_only_what_is_missing_is_done(
    command: Command,
    adapter: Adapter,
    alias: Alias,
    candidate: AdapterVersion,
    dataset: Dataset,
    alice: Any,
    tmp_path: Path,
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows())
    made_by_a_run(adapter, candidate, dataset, alice.as_actor(), steps=7)
    declare(tmp_path, hyperparameters={"steps": 7}, rollout=ROLLOUT)
    assert command("plan").stdout == (f"+ open rollout compliance: it serves {alias.version.served_name}\n")
    declare(tmp_path, adapter={"slug": "dora", "tags": ["eu"]}, hyperparameters={"steps": 7}, rollout=ROLLOUT)
    applied = command("apply", "--yes", "--json")
    assert applied.returncode == 0, applied.stderr
    rollout = Rollout.objects.get()
    assert json.loads(applied.stdout)["rollout"]["id"] == str(rollout.pk)
    assert rollout.candidate == candidate
    adapter.refresh_from_db()
    assert adapter.tags == ["eu"]
    before = AuditEvent.objects.count()
    again = command("apply", "--yes")
    assert (again.returncode, again.stderr) == (0, "Nothing changed: everything is as the file says.\n")
    assert AuditEvent.objects.count() == before
    rollout.rollback(reason="bad", by=alice.as_actor())
    refused = command("plan")
    assert (refused.returncode, "rolled back: change" in refused.stderr) == (1, True)
    declare(tmp_path, hyperparameters={"steps": 8}, rollout=ROLLOUT)
    assert "+ run training dora: no version was trained on this data with these settings\n" in command("plan").stdout
    declare(tmp_path, hyperparameters={"stepps": 8}, rollout=ROLLOUT)
    wrong = command("plan")
    assert (wrong.returncode, "hyperparameters.stepps" in wrong.stderr) == (2, True)


def test_a_version_is_found_behind_hundreds_of_other_runs(
    command: Command, adapter: Adapter, candidate: AdapterVersion, dataset: Dataset, alice: Any, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows())
    run = made_by_a_run(adapter, candidate, dataset, alice.as_actor(), steps=7)
    declare(tmp_path, hyperparameters={"steps": 7})
    other = {**run.hyperparameters, "steps": 8}
    fields = {
        field.attname: getattr(run, field.attname) for field in run._meta.concrete_fields if not field.primary_key
    }
    TrainingRun.objects.bulk_create(TrainingRun(**{**fields, "hyperparameters": other}) for _ in range(201))
    assert command("plan").stdout == "Nothing changed: everything is as the file says.\n"


def test_a_run_that_is_under_way_is_followed(
    command: Command, adapter: Adapter, dataset: Dataset, alice: Any, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows())
    run = launch_run(adapter=adapter, dataset=dataset, by=alice.as_actor())
    declare(tmp_path)
    late = command("apply", "--yes", "--timeout", "0")
    assert (late.returncode, f"> follow training dora: {run.pk} is in progress" in late.stderr) == (5, True), (
        late.stderr
    )
    assert TrainingRun.objects.get() == run


@pytest.mark.slow
def test_a_gate_refuses(
    command: Command,
    adapter: Adapter,
    alias: Alias,
    candidate: AdapterVersion,
    dataset: Dataset,
    alice: Any,
    tmp_path: Path,
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows())
    made_by_a_run(adapter, candidate, dataset, alice.as_actor())
    declare(tmp_path, gates={"loss_below": 2.0, "quorum": 1}, rollout=ROLLOUT)
    applying = command.start("apply", "--yes", "--timeout", "60")
    wait_until(Evaluation.objects.exists, 60, "the version is measured")
    job = Evaluation.claim(Evaluation.objects.get().pk)
    assert job
    (tmp_path / "output").mkdir()
    measured = {"arms": {"version": {"loss": 2.5}}, "differences": {"against": {"mean": 0, "low": -1, "high": 1}}}
    (tmp_path / "output/result.json").write_text(json.dumps(measured))
    job.succeeded(tmp_path)
    _, err = applying.communicate(timeout=60)
    assert (applying.returncode, "loss_below" in err, Rollout.objects.count()) == (6, True, 0), err
    declare(tmp_path, gates={"loss_below": 3.0, "quorum": 1}, rollout=ROLLOUT)
    # Its plan waits for a signature now.
    assert command("apply", "--yes").returncode == 8
    alias.refresh_from_db()
    assert (alias.policy, Evaluation.objects.count(), Rollout.objects.count()) == ({"quorum": 1}, 1, 1)


def test_a_task_of_lm_eval_is_a_gate(
    command: Command,
    adapter: Adapter,
    alias: Alias,
    candidate: AdapterVersion,
    dataset: Dataset,
    alice: Any,
    tmp_path: Path,
) -> None:
    """One that was asked already is not asked again; which are offered is checked before anything is paid for."""
    write_jsonl(tmp_path / "rows.jsonl", rows())
    made_by_a_run(adapter, candidate, dataset, alice.as_actor())
    fields = {"version": candidate, "base_digest": candidate.base_digest}
    metrics = {"task": {"name": "our_law"}, "scores": {"acc": 0.5}}
    result = VersionEvaluation.objects.create(**fields, metrics=metrics)
    Evaluation.objects.create(
        project=adapter.project,
        base_model=adapter.base_model,
        version=candidate,
        task="our_law",
        status="succeeded",
        result=result,
    )
    declare(tmp_path, gates={"no_worse": False, "tasks": [{"task": "our_law", "at_least": {}}]})
    assert "gates.tasks[0].at_least" in command("plan").stderr
    declare(tmp_path, gates={"no_worse": False, "tasks": [{"task": "our_law", "at_least": {"acc": 0.6}}]})
    refused = command("plan")
    assert (refused.returncode, "acc of" in refused.stderr, "below 0.6" in refused.stderr) == (6, True, True)
    declare(tmp_path, gates={"no_worse": False, "tasks": [{"task": "other", "at_least": {"acc": 0.6}}]})
    unknown = command("plan")
    assert (unknown.returncode, "gates.tasks[0].task: No lm-eval tasks" in unknown.stderr) == (2, True), unknown.stderr
