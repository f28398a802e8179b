"""Every POST of the API is carried out, its answer is lost, and it is sent again with its key: one effect."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from adapterhub.api.models import IdempotentRequest
from adapterhub.api.tasks import STORED_FOR, drop_old_answers
from tests.builders.walk import ASKING, POSTS, address, body, files, many_rows, row_counts


def send(client: Client, name: str, url: str, key: str, folder: Path) -> Any:
    form = many_rows() if name.startswith("api:dataset-") and files(name, folder) else files(name, folder)
    kind = {} if form else {"content_type": "application/json"}
    payload = form or json.dumps(body(name, folder), default=str)
    return client.post(url, payload, headers={"Idempotency-Key": key}, **kind)


def repeatable(answer: Any) -> Any:
    """Return the answer's body, with null in place of what is shown once."""
    body = json.loads(answer.content) if answer.content else {}
    return {name: None if name in ("token", "secret") else value for name, value in body.items()}


@pytest.mark.slow
def test_each_post_has_one_effect(world: dict[str, Any], ci: str, tmp_path: Path) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}"})
    wrong, done = [], set()
    for name in POSTS:
        url = address(name, world)
        with transaction.atomic():
            key, before = uuid.uuid4().hex, row_counts()
            lost = url and send(client, name, url, key, tmp_path)
            first = row_counts()
            if url and lost.status_code < 400:
                again = send(client, name, url, key, tmp_path)
                done |= {name} if first != before else set()
                repeated = json.loads(again.content or b"{}")
                if (again.status_code, repeated, row_counts()) != (lost.status_code, repeatable(lost), first):
                    wrong.append(f"{name}: {lost.status_code}, then {again.status_code}")
                if again.headers.get("Idempotency-Replayed") != "true":
                    wrong.append(f"{name} is not said to be replayed")
            transaction.set_rollback(True)
    assert wrong == []
    assert done >= {
        "api:adapter-list",
        "api:version-list",
        "api:dataset-list",
        "api:training-run-list",
        "api:rank-analysis-list",
        "api:evaluation-list",
        "api:token-list",
    }
    assert not done & ASKING


def test_a_key_is_for_one_body_and_one_request_at_a_time(world: dict[str, Any], ci: str) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}", "Idempotency-Key": "once"})

    def post(slug: str) -> Any:
        fields = {"project": "eu", "slug": slug, "base_model": "tiny"}
        return client.post("/api/v1/adapters/", fields, content_type="application/json")

    assert post("first").status_code == 201
    other = post("second")
    assert (other.status_code, other.json()["code"]) == (422, "key_reused")
    IdempotentRequest.objects.update(status=None, sealed=None)
    flying = post("first")
    assert (flying.status_code, flying.json()["code"]) == (409, "in_flight")


@pytest.mark.threat("C2")
def test_a_secret_that_is_shown_once_lies_nowhere_readable(world: dict[str, Any], ci: str) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}", "Idempotency-Key": "once"})
    fields = {"project": "eu", "name": "t", "scopes": ["read"]}
    secret = client.post("/api/v1/tokens/", fields, content_type="application/json").json()["token"]
    stored = IdempotentRequest.objects.get()
    assert secret.encode() not in bytes(stored.sealed)
    again = client.post("/api/v1/tokens/", fields, content_type="application/json")
    assert (again.status_code, again.json()["token"], secret in again.content.decode()) == (201, None, False)


def test_keys_are_forgotten_after_a_day(world: dict[str, Any], ci: str) -> None:
    client = Client(headers={"Authorization": f"Bearer {ci}"})
    for key in ("old", "new"):
        fields = {"project": "eu", "slug": key, "base_model": "tiny"}
        kind = "application/json"
        assert client.post("/api/v1/adapters/", fields, kind, headers={"Idempotency-Key": key}).status_code == 201
    old = IdempotentRequest.objects.filter(key="old")
    old.update(created_at=old.get().created_at - STORED_FOR)
    drop_old_answers()
    assert [stored.key for stored in IdempotentRequest.objects.all()] == ["new"]
