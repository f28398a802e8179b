"""What can be said about a version: compatibility, comparison, lineage, dossier, and which version answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.utils.html import strip_tags

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.evidence.comparison_process import as_float, distances, read_modules
from registry.models import Adapter, AdapterVersion, Alias, Approval, Dossier, Response, Rollout
from tests.builders import LAYERS, SHAPES, write_adapter
from tests.builders.rest import client as api
from tests.builders.rest import problem
from tests.markup import markup

PLACE = "/api/v1/adapters/dora/versions/1"
PAGE = "/adapters/dora/v1"


def test_every_engine_is_answered_with_a_reason(ci: str, version: AdapterVersion) -> None:
    rows = api(ci).get(f"{PLACE}/compatibility/").json()
    assert {row["engine"]: row["outcome"] for row in rows} == {
        "vllm": "serves",
        "vllm-old": "serves",
        "sglang": "serves",
        "embedded": "serves",
        "llama.cpp": "serves_after_export",
    }
    assert all(row["reason"] for row in rows)


def test_distances_are_those_of_the_full_updates(tmp_path: Path) -> None:
    folders = write_adapter(tmp_path / "a", rank=3, seed=1), write_adapter(tmp_path / "b", rank=5, seed=2)
    sides = [read_modules(folder) for folder in folders]
    rows = {row["module"]: row for row in distances(*sides)}
    assert len(rows) == LAYERS * len(SHAPES)
    for module, row in rows.items():
        u, v = (scale * (b.astype(np.float64) @ a) for a, b, scale in (side[module] for side in sides))
        cosine = (u * v).sum() / (np.linalg.norm(u) * np.linalg.norm(v))
        np.testing.assert_allclose(row["cosine_distance"], 1 - cosine, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            [row["norm_from"], row["norm_to"]], [np.linalg.norm(u), np.linalg.norm(v)], rtol=1e-5
        )
    assert all(abs(row["cosine_distance"]) < 1e-6 for row in distances(sides[0], sides[0]))


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    numbers = np.array([1.0, -2.5, 0.0], np.float32)
    halves = (numbers.view("<u4") >> 16).astype("<u2").tobytes()
    assert as_float(halves, "BF16").tolist() == numbers.tolist()


def test_a_module_without_an_update_has_no_distance(tmp_path: Path) -> None:
    one = read_modules(write_adapter(tmp_path / "a"))
    rows = distances(one, {})
    assert {row["cosine_distance"] for row in rows} == {None}
    assert {row["norm_to"] for row in rows} == {0.0}


def test_two_versions_are_compared(ci: str, version: AdapterVersion, candidate: AdapterVersion) -> None:
    answer = api(ci).get(f"{PLACE}/compare/", {"to": 2})
    assert answer.status_code == 200, answer.content
    comparison = answer.json()
    assert (comparison["from"], comparison["to"]) == (version.served_name, candidate.served_name)
    assert len(comparison["updates"]) == LAYERS * len(SHAPES)
    assert all(row["same"] for row in comparison["config"])
    for wrong in ("", "9", "x", "-1"):
        assert problem(api(ci).get(f"{PLACE}/compare/", {"to": wrong}), 422, "invalid")["errors"][0]["field"] == "to"


def test_the_page_draws_the_comparison(
    client: Client, alice: User, version: AdapterVersion, candidate: AdapterVersion
) -> None:
    client.force_login(alice)
    picture = client.get(f"{PAGE}/compare/", {"to": 2, "distances": 1}).content.decode()
    assert picture.count("<rect") == LAYERS * len(SHAPES)
    assert "cosine distance" in picture
    assert "/adapters/eu.dora/v1/compare/ask/?to=2" in client.get(f"{PAGE}/compare/", {"to": 2}).content.decode()


@pytest.fixture
def served(alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    """The candidate in an approved-to-be rollout, with an answer of the stable version."""
    alias.set_policy({"quorum": 1}, by=alice.as_actor())
    Response.objects.create(
        id="resp-1",
        project=alias.project,
        version=alias.version,
        arm="stable",
        alias_name=alias.name,
        at=alias.created_at,
        status=200,
        is_sticky=True,
        total_ms=12,
    )
    return Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=alice.as_actor())


def test_a_graph_leads_from_the_data_to_the_answers(
    ci: str, served: Rollout, adapter: Adapter, alice: User, tmp_path: Path
) -> None:
    graph = client_json(ci, f"{PLACE}/lineage/")
    kinds = {node["kind"] for node in graph["nodes"]}
    assert {"base_model", "version", "alias_move", "answers"} <= kinds
    lineage = {"run": "r1", "dataset": "d" * 64, "rank_analysis": "a1"}
    folder = write_adapter(tmp_path / "t", seed=7)
    AdapterVersion.publish(adapter, folder, method="lora", by=alice.as_actor(), lineage=lineage)
    trained = client_json(ci, "/api/v1/adapters/dora/versions/3/lineage/")
    assert {"dataset", "rank_analysis", "training_run"} <= {node["kind"] for node in trained["nodes"]}
    known = {node["id"] for node in trained["nodes"]}
    assert all(end in known for edge in trained["edges"] for end in edge)


def client_json(token: str, path: str) -> Any:
    answer = api(token).get(path)
    assert answer.status_code == 200, answer.content
    return answer.json()


def test_a_dossier_is_frozen_as_it_was(ci: str, version: AdapterVersion, alice: User) -> None:
    frozen = api(ci).post(f"{PLACE}/dossier/").json()
    assert AuditEvent.objects.filter(tag=Tag.DOSSIER_FROZEN).get().after == {"dossier": frozen["digest"]}
    version.adapter.describe(by=alice.as_actor(), description="Answers questions about DORA")
    now = client_json(ci, f"{PLACE}/dossier/")
    assert now["1 General description"]["purpose"] == "Answers questions about DORA"
    (again,) = client_json(ci, f"{PLACE}/dossiers/")
    assert again["content"] == frozen["content"] != now
    for statement in ("UPDATE registry_dossier SET digest = 'x'", "DELETE FROM registry_dossier"):
        with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)


def test_a_dossier_says_what_it_does_not_know_and_claims_nothing(ci: str, version: AdapterVersion) -> None:
    content = client_json(ci, f"{PLACE}/dossier/")
    assert "no declaration of conformity" in content["note"]
    assert "Not recorded" in content["5 Risk management and limits"]["risk management"]
    assert content["7 Integrity"]["artifact"] == f"sha256:{version.digest}"
    assert json.loads(content["7 Integrity"]["signature"])


def test_the_dossier_page_prints_and_freezes(client: Client, alice: User, bob: User, version: AdapterVersion) -> None:
    client.force_login(alice)
    assert "Freeze" in client.get("/adapters/eu.dora/v1/dossier/").content.decode()
    client.post(f"{PAGE}/dossier/freeze/")
    digest = Dossier.objects.get().digest
    client.force_login(bob)
    page = client.get("/adapters/eu.dora/v1/dossier/", {"digest": digest}).content.decode()
    assert digest in page
    assert "<button>Freeze" not in page
    assert client.post(f"{PAGE}/dossier/freeze/").status_code == 403


def test_an_answer_names_its_version_and_approvals(ci: str, served: Rollout, client_of_alice: Client) -> None:
    answer = client_json(ci, "/api/v1/responses/resp-1/")
    version = served.stable
    assert (answer["version"], answer["digest"], answer["arm"]) == (version.served_name, version.digest, "stable")
    assert answer["approvals"] == []
    page = client_of_alice.get("/responses/", {"id": "resp-1"}).content.decode()
    assert version.served_name in page
    Response.objects.create(
        id="resp-2",
        project=version.project,
        version=served.candidate,
        arm="candidate",
        alias_name=served.alias.name,
        at=version.created_at,
        status=200,
        is_sticky=True,
        total_ms=1,
    )
    candidates_page = client_of_alice.get("/responses/", {"id": "resp-2"}).content.decode()
    assert "as the candidate of a rollout" in candidates_page
    assert client_json(ci, "/api/v1/responses/resp-2/")["approvals"] == [str(Approval.objects.get().pk)]
    assert "is known" in client_of_alice.get("/responses/", {"id": "nothing"}).content.decode()


@pytest.fixture
def client_of_alice(alice: User) -> Client:
    signed_in = Client()
    signed_in.force_login(alice)
    return signed_in


def test_an_answer_of_another_project_is_not_shown(client: Client, charlie: User, served: Rollout) -> None:
    client.force_login(charlie)
    assert served.stable.served_name not in client.get("/responses/", {"id": "resp-1"}).content.decode()


def test_the_version_page_offers_files_and_evidence(client_of_alice: Client, served: Rollout) -> None:
    page = client_of_alice.get(f"{PAGE}/").content.decode()
    for link in (
        f"{PLACE}/download/",
        f"{PLACE}/export/?format=portable",
        "/adapters/eu.dora/v1/dossier/",
        "llama.cpp",
    ):
        assert link in page


def test_the_alias_page_says_what_served_then(client_of_alice: Client, served: Rollout) -> None:
    alias = served.alias
    page = markup(client_of_alice.get(f"/aliases/{alias}/", {"at": alias.created_at.isoformat()}, follow=True))
    assert f"everybody got{served.stable}" in " ".join(strip_tags(page).split())
    early = client_of_alice.get(f"/aliases/{alias}/", {"at": "2001-01-01T00:00:00Z"}, follow=True).content.decode()
    assert "did not exist" in early
    assert client_of_alice.get(f"/aliases/{alias}/", {"at": "yesterday"}, follow=True).status_code == 422
