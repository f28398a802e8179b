"""`adapterhub plan` meets, before anything is paid for, what `apply` would meet; it needs scope read alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster, Rollout
from tests.builders import rows, write_jsonl
from tests.cli.command import Command
from training.models import Dataset

ROLLOUT: dict[str, Any] = {
    "alias": "compliance",
    "steps": [{"weight": 10, "hold_s": 60, "min_samples": 100}],
    "guardrails": [{"metric": "error_rate", "margin": 1}],
}
FILE: dict[str, Any] = {"adapter": {"slug": "dora"}, "base": "tiny", "data": "rows.jsonl", "rollout": ROLLOUT}


def declare(folder: Path, **fields: Any) -> None:
    (folder / "adapterhub.yaml").write_text(yaml.safe_dump({**FILE, **fields}))
    write_jsonl(folder / "rows.jsonl", rows())


@pytest.fixture
def reader(project: Project, alice: User) -> str:
    return ApiToken.issue(name="reader", project=project, scopes=["read"], created_by=alice)[1]


def other_base() -> BaseModel:
    return BaseModel.objects.create(slug="other", source="other", status="ready", digest="0" * 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("declared", "field", "code"),
    [
        ({"base": "smollm"}, "base", 2),
        ({"data": 99}, "data", 2),
        ({"budget": {"uniform_rank": 500}}, "budget", 2),
        ({"hyperparameters": {"stepps": 8}}, "hyperparameters.stepps", 2),
        ({"hyperparameters": {"learning_rate": 5.0}}, "hyperparameters.learning_rate", 2),
        ({"hyperparameters": {"rank": 512}}, "hyperparameters.rank", 2),
        ({"budget": {"uniform_rank": 4}, "hyperparameters": {"rslora": True}}, "hyperparameters.rslora", 2),
        ({"gates": {"quorum": 1}, "rollout": None}, "gates.quorum", 2),
        ({"rollout": {**ROLLOUT, "guardrails": []}}, "rollout.guardrails", 2),
        ({"rollout": {**ROLLOUT, "guardrails": [{"metric": "speed", "margin": 1}]}}, "rollout.guardrails[0].metric", 2),
        ({"rollout": {**ROLLOUT, "steps": [{"weight": 80}]}}, "rollout.steps", 2),
        ({"rollout": {**ROLLOUT, "steps": [{"weight": 20}, {"weight": 10}]}}, "rollout.steps", 2),
        ({"rollout": {**ROLLOUT, "cluster": "gpu"}}, "rollout.cluster", 2),
        ({"rollout": {**ROLLOUT, "alias": "new"}}, "rollout.cluster", 2),
        ({"rollout": {**ROLLOUT, "alias": "new", "cluster": "nowhere"}}, "rollout.cluster", 2),
    ],
)
def test_what_apply_would_meet_is_planned(
    command: Command, alias: Alias, reader: str, tmp_path: Path, declared: dict[str, Any], field: str, code: int
) -> None:
    declare(tmp_path, **declared)
    before = (AuditEvent.objects.count(), Dataset.objects.count())
    planned = command("plan", "--json", ADAPTERHUB_TOKEN=reader)
    assert (planned.returncode, f"adapterhub.yaml: {field}: " in planned.stderr) == (code, True), planned.stderr
    error = json.loads(planned.stdout)["error"]
    assert (error["exit_code"], [fault["field"] for fault in error["errors"]]) == (code, [field])
    assert (AuditEvent.objects.count(), Dataset.objects.count()) == before


def test_several_refusals_are_named_at_once(command: Command, alias: Alias, cluster: Cluster, tmp_path: Path) -> None:
    Cluster.objects.filter(pk=cluster.pk).update(base_model=other_base())
    declare(tmp_path, budget={"parameters": 1}, rollout={**ROLLOUT, "guardrails": []})
    planned = command("plan")
    named = [line.split(": ")[1] for line in planned.stderr.splitlines()]
    assert (planned.returncode, named) == (2, ["budget", "rollout.guardrails", "rollout.cluster"]), planned.stderr


def test_an_open_rollout_of_another_candidate_is_met(
    command: Command, alias: Alias, candidate: AdapterVersion, alice: User, reader: str, tmp_path: Path
) -> None:
    Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="x", by=alice.as_actor())
    declare(tmp_path)
    planned = command("plan", ADAPTERHUB_TOKEN=reader)
    assert (planned.returncode, "rollout.alias: compliance has a rollout" in planned.stderr) == (4, True)
    assert "adapterhub cancel compliance" in planned.stderr
    assert command("cancel", "compliance", "--reason", "another comes").returncode == 0
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    declare(tmp_path, gates={"quorum": 0})
    refused = command("plan")
    assert (refused.returncode, "gates.quorum: compliance is protected" in refused.stderr) == (6, True), refused.stderr


def test_an_apply_checks_its_scopes_first(
    command: Command, alias: Alias, adapter: Adapter, reader: str, project: Project, alice: User, tmp_path: Path
) -> None:
    declare(tmp_path)
    planned = command("plan", ADAPTERHUB_TOKEN=reader)
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.startswith("+ create dataset rows.jsonl")
    token = ApiToken.issue(name="trainer", project=project, scopes=["read", "train"], created_by=alice)[1]
    refused = command("apply", "--yes", ADAPTERHUB_TOKEN=token)
    assert (refused.returncode, "needs scope 'operate'" in refused.stderr, Dataset.objects.count()) == (3, True, 0)


def test_a_declared_cluster_need_not_exist_for_a_rollout_on_it(
    command: Command, alias: Alias, reader: str, tmp_path: Path
) -> None:
    wanted = {"alias": "new", "cluster": "gpu"}
    declare(tmp_path, cluster={"slug": "gpu"}, rollout={**ROLLOUT, **wanted})
    planned = command("plan", ADAPTERHUB_TOKEN=reader)
    assert planned.returncode == 0, planned.stderr
    assert "+ create cluster gpu" in planned.stdout
    for rank, field in ((1, "hyperparameters.rank"), (5, "cluster.max_lora_rank")):
        declare(tmp_path, cluster={"slug": "gpu", "max_lora_rank": rank}, rollout={**ROLLOUT, **wanted})
        refused = command("plan", ADAPTERHUB_TOKEN=reader)
        assert (refused.returncode, f"{field}: " in refused.stderr) == (2, True), refused.stdout + refused.stderr


def test_a_number_is_a_dataset(command: Command, adapter: Adapter, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "adapterhub.yaml").write_text(
        f"adapter: {{slug: dora}}\nbase: tiny\ndata: {dataset.pk}          # the number of a dataset\n"
    )
    planned = command("plan", "--json")
    assert (planned.returncode, json.loads(planned.stdout)["dataset"]) == (0, dataset.pk), planned.stderr


def test_a_key_that_is_there_twice_is_refused(command: Command, tmp_path: Path) -> None:
    (tmp_path / "adapterhub.yaml").write_text(
        "adapter: {slug: dora}\nbase: tiny\ndata: 2\nhyperparameters:\n  steps: 10\n  steps: 20\n"
    )
    refused = command("plan")
    assert (refused.returncode, "'steps' is there twice" in refused.stderr, "line 6" in refused.stderr) == (
        2,
        True,
        True,
    )


def test_the_command_line_goes_before_the_file(command: Command, adapter: Adapter, tmp_path: Path) -> None:
    declare(tmp_path, project="eu", rollout=None)
    refused = command("plan", "--project", "staging")
    assert (refused.returncode, "'staging'" in refused.stderr) == (2, True), refused.stderr
    assert command("plan", ADAPTERHUB_PROJECT="staging").returncode == 0


@pytest.mark.parametrize("address", ["hub.example.org", "127.0.0.1:8000", "ftp://hub.example.org", "https://"])
def test_an_address_that_is_none_is_named(command: Command, address: str) -> None:
    refused = command("plan", "--json", ADAPTERHUB_URL=address)
    assert (refused.returncode, address in refused.stderr, "https://" in refused.stderr) == (2, True, True)
    assert json.loads(refused.stdout)["error"]["exit_code"] == 2
    assert command("login", address, stdin="t\n").returncode == 2


def test_errors_are_objects_with_json(command: Command, alias: Alias) -> None:
    for arguments, code, name in (
        (("promote", "compliance", "--reason", "x", "--json"), 2, "usage"),
        (("train", "dora", "--dataset", "7", "--json"), 2, "not_found"),
        (("train", "dora", "--json", "--no-such-option"), 2, "usage"),
        (("audit", "verify", "--json", "--project", "nowhere"), 2, "unknown_project"),
    ):
        failed = command(*arguments)
        error = json.loads(failed.stdout)["error"]
        assert (failed.returncode, error["exit_code"], error["code"]) == (code, code, name), failed
        assert error["message"].strip() in failed.stderr


def test_a_file_that_is_none_is_named_with_its_fix(command: Command, tmp_path: Path) -> None:
    missing = command("plan", "--json")
    assert (missing.returncode, "There is no adapterhub.yaml here: write one" in missing.stderr) == (2, True)
    for text, words in (
        ("", "adapterhub.yaml: the file: Write fields and their values here"),
        ("- a", "adapterhub.yaml: the file: Write fields and their values here"),
        ("adapter: dora\nbase: tiny\ndata: 2\n", "adapterhub.yaml: adapter: Write fields and their values here"),
        ("adapter: {slug: a}\nbase: b\ndata: 2\nx: &h {steps: 5}\n", "adapterhub.yaml: x: There is no such field"),
    ):
        (tmp_path / "adapterhub.yaml").write_text(text)
        refused = command("plan")
        assert (refused.returncode, words in refused.stderr) == (2, True), refused.stderr


@pytest.mark.parametrize(
    "text",
    [
        "rollout: {alias: a, steps: [{weight: 10, weight: 20}]}",
        "hyperparameters: {steps: 5, 'steps': 6}",
        "gates: {tasks: [{task: a, at_least: {acc: 1, acc: 2}}]}",
    ],
)
def test_a_key_is_refused_twice_at_any_depth(command: Command, tmp_path: Path, text: str) -> None:
    (tmp_path / "adapterhub.yaml").write_text(f"adapter: {{slug: dora}}\nbase: tiny\ndata: 2\n{text}\n")
    refused = command("plan")
    assert (refused.returncode, "is there twice" in refused.stderr) == (2, True), refused.stderr
