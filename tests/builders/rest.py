"""Calls of the REST API as a program makes them, and what it reads out of a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rest_framework.test import APIClient

from registry.models import Adapter


def client(token: str = "", **headers: str) -> APIClient:
    api = APIClient()
    if token:
        headers["HTTP_AUTHORIZATION"] = f"Bearer {token}"
    api.credentials(**headers)
    return api


def problem(response: Any, status: int, code: str) -> dict[str, Any]:
    body = response.json()
    assert (response.status_code, body["code"], body["status"]) == (status, code, status), body
    assert response["Content-Type"] == "application/problem+json"
    return body


def upload_adapter(api: APIClient, adapter: Adapter, folder: Path) -> Any:
    with (
        (folder / "adapter_model.safetensors").open("rb") as weights,
        (folder / "adapter_config.json").open("rb") as config,
    ):
        files = {"adapter_model": weights, "adapter_config": config}
        return api.post(f"/api/v1/adapters/{adapter.slug}/versions/", files, format="multipart")
