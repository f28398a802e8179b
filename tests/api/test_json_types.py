"""Values of a JSON body are of the kinds that the description names; a form's are texts, as forms send them."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.accounts.models import Project
from registry.models import BaseModel
from tests.builders.rest import client, problem

ADAPTER = {"project": "eu", "slug": "fresh", "base_model": "tiny"}
PLAN = {"alias": "compliance", "candidate": "x", "steps": [{"weight": 5}], "reason": "x"}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("adapters", ADAPTER | {"description": 5}, "description"),
        ("adapters", ADAPTER | {"tags": ["a", 5]}, "tags[1]"),
        ("rollouts", PLAN | {"draft": "yes"}, "draft"),
        ("rollouts", PLAN | {"draft": 1}, "draft"),
        ("rollouts", PLAN | {"steps": [{"weight": "5"}]}, "steps[0].weight"),
        ("rollouts", PLAN | {"steps": [{"weight": True}]}, "steps[0].weight"),
        ("rollouts", PLAN | {"steps": [{"weight": 5, "hold_s": 1.5}]}, "steps[0].hold_s"),
        ("rank-analyses", {"project": "eu", "dataset": "5"}, "dataset"),
        ("training-runs", {"project": "eu", "dataset": 5, "prompts": {"one": 1}}, "prompts.one"),
        ("training-runs", {"project": "eu", "rank_analysis": 5}, "rank_analysis"),
        ("clusters", {"project": "eu", "slug": "c", "max_lora_rank": "16"}, "max_lora_rank"),
        ("tokens", {"project": "eu", "name": "t", "scopes": [1]}, "scopes[0]"),
        ("tokens", {"project": "eu", "name": "t", "scopes": ["read"], "expires_at": 5}, "expires_at"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(ci: str, path: str, body: dict[str, Any], field: str) -> None:
    refused = problem(client(ci).post(f"/api/v1/{path}/", body, format="json"), 422, "invalid")
    assert [error["field"] for error in refused["errors"]] == [field]


def test_a_whole_number_may_be_written_with_a_point(ci: str, project: Project, base_model: BaseModel) -> None:
    body = {"project": "eu", "slug": "c", "base_model": "tiny", "max_loras": 8.0, "max_lora_rank": 16}
    answer = client(ci).post("/api/v1/clusters/", body, format="json")
    assert (answer.status_code, answer.json()["max_loras"], answer.json()["max_lora_rank"]) == (201, 8, 16)


def test_a_form_sends_texts(ci: str, base_model: BaseModel) -> None:
    answer = client(ci).post("/api/v1/clusters/", {**ADAPTER, "max_loras": "8"}, format="multipart")
    assert (answer.status_code, answer.json()["max_loras"]) == (201, 8)


@pytest.mark.parametrize("key", ["", "a b", "schlüssel".encode().decode("latin-1"), "a" * 256])
def test_an_idempotency_key_is_visible_ascii(ci: str, base_model: BaseModel, key: str) -> None:
    answer = client(ci, HTTP_IDEMPOTENCY_KEY=key).post("/api/v1/adapters/", ADAPTER)
    assert problem(answer, 422, "invalid")["errors"][0]["field"] == "Idempotency-Key"
