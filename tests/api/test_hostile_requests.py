"""Requests that want too much, or a place that is not theirs: caps on bodies and pages, and keys that we make."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import URLPattern, get_resolver
from rest_framework.test import APIClient

from adapterhub.accounts.models import User
from adapterhub.artifacts import S3Store
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from adapterhub.core.actor import system
from registry.models import Adapter, AdapterVersion
from tests.builders import rows, write_adapter
from tests.builders.rest import client, problem
from training.models import Evaluation

NAMES = ["../../secrets", "..%252f..%252fsecrets", "a\\..\\b", "/etc/passwd", "name\x00.jsonl", "s3://other/x", "$(id)"]


@pytest.mark.threat("D2")
def test_a_page_of_a_list_has_at_most_two_hundred_rows(ci: str, adapter: Adapter) -> None:
    adapters = Adapter.objects.bulk_create(
        Adapter(project=adapter.project, slug=f"a-{number}", base_model=adapter.base_model) for number in range(250)
    )
    page = client(ci).get("/api/v1/adapters/", {"page_size": 200}).json()
    assert len(page["results"]) == 200 < len(adapters)
    assert page["next"]
    for size in (201, 100_000, 0, -1, "", "all", "1.5"):
        refused = problem(client(ci).get("/api/v1/adapters/", {"page_size": size}), 422, "invalid")
        assert refused["errors"][0]["field"] == "page_size"


@pytest.mark.threat("D2")
@pytest.mark.parametrize("position", ["abc", "1e9", "2026-99-99", "9" * 400, "\0", "-1", "[]"])
def test_a_cursor_that_we_did_not_make_is_no_page(ci: str, adapter: Adapter, position: str) -> None:
    """A position that is no value of the column was a fault of the database."""
    cursor = b64encode(urlencode({"p": position}).encode()).decode()
    for name in ("adapters", "audit/events", "training-runs", "rollouts"):
        answer = client(ci).get(f"/api/v1/{name}/", {"cursor": cursor})
        assert answer.status_code in (200, 404), (name, answer.content)


@pytest.mark.threat("D2")
def test_a_page_ends_where_its_rows_are_large(ci: str, version: AdapterVersion) -> None:
    """Two hundred rows of a megabyte took gigabytes; each way through the pages shows every row once."""
    large = ["x" * 8000] * 150
    base = version.adapter.base_model
    jobs = [Evaluation(project=version.project, base_model=base, version=version, prompts=large) for _ in range(7)]
    Evaluation.objects.bulk_create(jobs)
    project, part = version.project, {str(number): "x" * 19_000 for number in range(10)}
    for _ in range(10):
        AuditEvent.record(
            Tag.PROJECT_CHANGED, project, by=system("test"), project=project, before=part, after=part, evidence=part
        )
    for url, sizes in (
        ("/api/v1/evaluations/?page_size=200", [3, 3, 1]),
        ("/api/v1/audit/events/?page_size=200&tag=project:changed", [7, 3]),
    ):
        forward = pages_of(ci, url, "next")
        assert [len(page["results"]) for page in forward] == sizes
        keys = [row["id"] for page in forward for row in page["results"]]
        assert len(set(keys)) == sum(sizes)
        back = pages_of(ci, forward[-1]["previous"], "previous")
        assert {row["id"] for page in back for row in page["results"]} == set(keys[: -sizes[-1]])


def pages_of(token: str, url: str, way: str) -> list[dict[str, Any]]:
    pages: list[dict[str, Any]] = []
    while url:
        pages.append(client(token).get(url).json())
        url = pages[-1][way]
    return pages


@pytest.mark.threat("D2")
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "application/xml"])
def test_a_body_that_no_parser_may_hold_is_413(ci: str, kind: str) -> None:
    body = b'{"slug": "' + b"a" * settings.DATA_UPLOAD_MAX_MEMORY_SIZE + b'"}'
    answer = client(ci).generic("POST", "/api/v1/adapters/", body, content_type=kind)
    assert "multipart" in problem(answer, 413, "body_too_large")["detail"]


@pytest.mark.threat("D18")
@pytest.mark.parametrize("value", ["{}", "[]", "0"])
def test_a_body_of_too_many_values_is_413(ci: str, value: str) -> None:
    """Each takes dozens of bytes once it is parsed."""
    body = '{"slug": "a", "tags": [' + ",".join([value] * 200_001) + "]}"
    answer = client(ci).generic("POST", "/api/v1/adapters/", body, content_type="application/json")
    problem(answer, 413, "too_many_values")


@pytest.mark.threat("H5")
@pytest.mark.parametrize("body", [{"slug": "a\0"}, {"tags": [{"a\0": 1}]}])
def test_a_nul_is_refused_wherever_it_stands(ci: str, adapter: Adapter, body: dict[str, Any]) -> None:
    """Postgres has no place for it: it would be a fault of ours."""
    fields = {"project": "eu", "slug": "n", "base_model": "tiny", **body}
    problem(client(ci).post("/api/v1/adapters/", fields), 422, "null_characters_not_allowed")
    problem(client(ci).get("/api/v1/audit/events/", {"tag": "a\0"}), 422, "null_characters_not_allowed")


@pytest.mark.threat("E1")
def test_no_name_of_a_caller_becomes_a_key_of_the_store(
    bucket: S3Store, ci: str, adapter: Adapter, tmp_path: Path
) -> None:
    """Hostile names in every field that takes text: refused, or kept as text. The bucket holds only keys of ours."""
    api = client(ci)
    for number, name in enumerate(NAMES):
        lines = "".join(json.dumps(row | {"prompt": name}) + "\n" for row in rows(20 + number)).encode()
        file = SimpleUploadedFile("x", lines)
        file.name = name
        body = {"project": "eu", "file": file, "name": name}
        assert api.post("/api/v1/datasets/", body, format="multipart").status_code < 500
        for field in ("slug", "base_model", "project"):
            fields = {"project": "eu", "slug": f"n-{number}", "base_model": "tiny", field: name}
            assert api.post("/api/v1/adapters/", fields).status_code in (404, 422)
        answer = upload(ci, write_adapter(tmp_path / str(number), seed=number), name)
        assert answer.status_code == 201, answer.json()
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.bucket)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    assert len(keys) > len(NAMES)
    assert [key for key in keys if not re.fullmatch(r"hub/[0-9a-f]{64}/[a-z_]+\.(json|jsonl|safetensors)", key)] == []


def upload(token: str, folder: Path, name: str) -> Any:
    files = {
        "adapter_model": SimpleUploadedFile("x", (folder / "adapter_model.safetensors").read_bytes()),
        "adapter_config": SimpleUploadedFile("x", (folder / "adapter_config.json").read_bytes()),
    }
    for sent in files.values():
        sent.name = name
    return client(token).post("/api/v1/adapters/dora/versions/", files, format="multipart")


@pytest.mark.threat("B4")
def test_nothing_is_deleted_by_a_call(version: AdapterVersion, alice: User) -> None:
    """Evidence is never deleted, by an administrator neither; the content of a dataset has its request and two people.

    Replicas and clusters leave the fleet; the trail keeps that they were there. MLflow's client drops tags, and files
    that never became a version; its calls that delete evidence are refused.
    """
    User.objects.filter(pk=alice.pk).update(is_superuser=True, is_staff=True)
    api = APIClient()
    api.force_login(User.objects.get(pk=alice.pk))
    assert api.delete("/api/v1/adapters/dora/versions/1/").status_code in (403, 405)
    assert {route.partition("/")[0] for route in takers(get_resolver().url_patterns)} == {
        "^clusters",
        "^replicas",
        "mlflow",
        "mlflow-artifacts",
    }


def takers(patterns: list[Any]) -> list[str]:
    """The routes of REST that take DELETE."""
    routes = []
    for pattern in patterns:
        if not isinstance(pattern, URLPattern):
            routes += takers(pattern.url_patterns)
        elif "delete" in (getattr(pattern.callback, "actions", None) or {}):
            routes.append(str(pattern.pattern))
    return routes
