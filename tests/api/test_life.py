"""REST as a CI job uses it: tokens, tenancy, errors, idempotency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster
from registry.tasks import check_version
from tests.builders import rows, write_adapter, write_jsonl
from tests.builders.rest import client, problem, upload_adapter
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run


def test_without_a_token_nothing_is_shown(db: None) -> None:
    problem(client().get("/api/v1/adapters/"), 401, "not_authenticated")
    problem(client("ah_abc_def").get("/api/v1/adapters/"), 401, "authentication_failed")


def test_a_revoked_token_is_refused(ci: str) -> None:
    api = client(ci)
    token = ApiToken.objects.get()
    assert api.post(f"/api/v1/tokens/{token.pk}/revoke/").status_code == 200
    problem(api.get("/api/v1/adapters/"), 401, "authentication_failed")


def test_a_token_is_shown_once_and_kept_as_a_hash(ci: str, project: Project) -> None:
    created = client(ci).post("/api/v1/tokens/", {"project": "eu", "name": "bot", "scopes": ["infer"]})
    assert created.status_code == 201
    secret = created.json()["token"].split("_", 2)[2]
    listed = client(ci).get("/api/v1/tokens/").content.decode()
    assert secret not in listed
    assert secret not in str(list(ApiToken.objects.values()))


def test_a_scope_that_is_missing_is_named(project: Project, base_model: BaseModel) -> None:
    _, token = ApiToken.issue(name="reader", project=project, scopes=["read"])
    body = {"project": "eu", "slug": "dora", "base_model": "tiny"}
    assert "publish" in problem(client(token).post("/api/v1/adapters/", body), 403, "scope_missing")["detail"]


def test_things_of_other_projects_do_not_exist(adapter: Adapter, alias: Alias, charlie: User) -> None:
    other = Project.objects.get(slug="other")
    _, token = ApiToken.issue(name="other", project=other, scopes=["read", "operate", "publish"])
    api = client(token)
    assert api.get("/api/v1/adapters/").json()["results"] == []
    problem(api.get("/api/v1/adapters/dora/"), 404, "not_found")
    problem(api.get("/api/v1/aliases/compliance/"), 404, "not_found")
    body = {"version": alias.version.served_name, "expected_version": alias.version.served_name, "reason": "steal"}
    problem(api.post("/api/v1/aliases/compliance/move/", body), 404, "not_found")
    # A name that another project uses is free, so that nobody learns of it.
    assert api.post("/api/v1/adapters/", {"project": "other", "slug": "dora", "base_model": "tiny"}).status_code == 201


def test_from_upload_to_a_moved_alias(ci: str, adapter: Adapter, cluster: Cluster, tmp_path: Path) -> None:
    api = client(ci)
    names = []
    for seed in (1, 2):
        created = upload_adapter(api, adapter, write_adapter(tmp_path / str(seed), seed=seed))
        assert created.status_code == 201, created.json()
        names.append(created.json()["served_name"])
        check_version(AdapterVersion.objects.get(served_name=names[-1]).pk)
    body = {"project": "eu", "name": "compliance", "cluster": "laptop", "version": names[0]}
    problem(api.post("/api/v1/aliases/", body), 422, "unknown_cluster")
    assert api.post("/api/v1/aliases/", {**body, "cluster": cluster.slug}).status_code == 201
    move = {"version": names[1], "expected_version": names[0], "reason": "newer"}
    assert api.post("/api/v1/aliases/compliance/move/", move).json()["version"] == names[1]
    late = problem(api.post("/api/v1/aliases/compliance/move/", move), 409, "alias_moved")
    assert "v2" in late["detail"]
    history = api.get("/api/v1/aliases/compliance/history/").json()
    assert [row["version"] for row in history] == names[::-1]
    first = api.get("/api/v1/aliases/compliance/history/", {"at": history[1]["at"]}).json()
    assert [row["version"] for row in first] == names[:1]


def test_a_bad_adapter_is_refused_with_the_field(ci: str, adapter: Adapter, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "bad", use_dora=True)
    body = problem(upload_adapter(client(ci), adapter, folder), 422, "bad_adapter")
    assert body["errors"][0]["field"] == "adapter_config.json.use_dora"
    assert not AdapterVersion.objects.exists()


def test_a_broken_line_is_named_and_nothing_is_stored(ci: str, project: Project, tmp_path: Path) -> None:
    lines: list[Any] = rows(20)
    lines[16] = {"prompt": "the bank shall", "completion": ""}
    path = write_jsonl(tmp_path / "rows.jsonl", lines)
    with path.open("rb") as file:
        response = client(ci).post("/api/v1/datasets/", {"project": "eu", "file": file}, format="multipart")
    body = problem(response, 422, "broken_lines")
    assert body["detail"].startswith("Line 17: completion is missing")
    assert body["errors"][0]["field"] == "file.17.completion"
    assert not Dataset.objects.exists()


def test_a_key_sent_twice_has_one_effect(ci: str, adapter: Adapter, dataset: Dataset) -> None:
    api = client(ci, HTTP_IDEMPOTENCY_KEY="run-1")
    body = {"project": "eu", "adapter": "dora", "dataset": dataset.pk}
    first, second = api.post("/api/v1/training-runs/", body), api.post("/api/v1/training-runs/", body)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["id"] == second.json()["id"]
    assert TrainingRun.objects.count() == 1
    problem(api.post("/api/v1/training-runs/", {**body, "hyperparameters": {"steps": 3}}), 422, "key_reused")


def test_a_refused_request_frees_its_key(ci: str, adapter: Adapter, dataset: Dataset) -> None:
    api = client(ci, HTTP_IDEMPOTENCY_KEY="run-2")
    body = {"project": "eu", "adapter": "dora", "dataset": dataset.pk}
    wrong = api.post("/api/v1/training-runs/", {**body, "hyperparameters": {"steps": "many"}})
    assert problem(wrong, 422, "bad_hyperparameter")["errors"][0]["field"] == "hyperparameters.steps"
    assert api.post("/api/v1/training-runs/", body).status_code == 202


def test_an_impossible_budget_is_refused_at_once(ci: str, base_model: BaseModel, dataset: Dataset) -> None:
    body = {"project": "eu", "base_model": "tiny", "dataset": dataset.pk, "budget": {"parameters": 10}}
    refused = problem(client(ci).post("/api/v1/rank-analyses/", body), 422, "bad_budget")
    assert refused["errors"][0]["field"] == "budget"
    both = {"parameters": 10, "bytes": 20}
    problem(client(ci).post("/api/v1/rank-analyses/", {**body, "budget": both}), 422, "invalid")


def test_the_trail_is_read_and_verified(ci: str, alias: Alias) -> None:
    api = client(ci)
    verdict = api.get("/api/v1/audit/verify/", {"project": "eu"}).json()
    events = AuditEvent.objects.filter(project__slug="eu").count()
    assert verdict == {
        "project": "eu",
        "ok": True,
        "events": events,
        "faults": [],
        "signed": 0,
        "witnessed": 0,
        "by_chain_alone": events,
        "proofs": [],
    }
    tags = [event["tag"] for event in api.get("/api/v1/audit/events/").json()["results"]]
    assert tags[0] == "alias:created"
    lines = b"".join(api.get("/api/v1/audit/export/", {"project": "eu"}).streaming_content).splitlines()
    assert len(lines) == verdict["events"]


@pytest.mark.parametrize(
    "path",
    [
        "projects",
        "base-models",
        "datasets",
        "rank-analyses",
        "training-runs",
        "adapters",
        "clusters",
        "replicas",
        "aliases",
        "rollouts",
        "tokens",
        "audit/events",
    ],
)
def test_every_list_pages(ci: str, rollout_of_everything: None, path: str) -> None:
    page = client(ci).get(f"/api/v1/{path}/", {"page_size": 1})
    assert page.status_code == 200, page.content
    assert len(page.json()["results"]) == 1


@pytest.fixture
def rollout_of_everything(
    alias: Alias, candidate: AdapterVersion, dataset: Dataset, adapter: Adapter, alice: User, base_model: BaseModel
) -> None:
    from registry.models import Rollout
    from training.models import RankAnalysis

    by = alice.as_actor()
    Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=by)
    alias.cluster.add_replica(url="http://127.0.0.1:1", by=by)
    launch_run(adapter=adapter, dataset=dataset, by=by)
    RankAnalysis.launch(
        project=adapter.project, base_model=base_model, dataset=dataset, by=by, budget={"uniform_rank": 8}
    )
