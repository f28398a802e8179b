"""Sources that MLflow's client sends: a folder, a run's folder or a zip, with the choices of an upload as tags."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from registry.models import Adapter, AdapterVersion, StagedFile
from tests.builders import write_adapter

ROOT, FILES = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts"
SOURCE = "mlflow-artifacts:/uploads/eu/run"


@pytest.fixture
def http(ci: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {ci}"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "sent")


def put(http: Client, path: str, content: bytes) -> None:
    answer = http.generic("PUT", f"{FILES}/uploads/eu/run/{path}", content, content_type="application/octet-stream")
    assert answer.status_code == 200, answer.content


def create(http: Client, source: str = SOURCE, **tags: str) -> Any:
    pairs = [{"key": f"hub.{key}", "value": value} for key, value in tags.items()]
    fields = {"name": "dora", "source": source, "tags": pairs}
    return http.post(f"{ROOT}model-versions/create", fields, content_type="application/json")


def packed(folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"out/{path.name}")
    return stream.getvalue()


def test_a_runs_folder_is_read_as_a_browsers_is(http: Client, adapter: Adapter, folder: Path) -> None:
    for path in folder.iterdir():
        put(http, f"checkpoint-20/{path.name}", path.read_bytes())
    put(http, "checkpoint-20/optimizer.pt", b"\x80\2.")
    made = create(http)
    assert made.status_code == 200, made.json()
    assert made.json()["model_version"]["status"] == "PENDING_REGISTRATION"
    lines = AdapterVersion.objects.get().lineage["conversions"]
    assert lines == ["Taken from checkpoint-20/.", "Left out: optimizer.pt."]


@pytest.mark.parametrize("host", ["", "testserver"])
def test_a_zip_at_this_address_is_unpacked(http: Client, adapter: Adapter, folder: Path, host: str) -> None:
    put(http, "adapter.zip", packed(folder))
    assert create(http, f"mlflow-artifacts://{host}/uploads/eu/run" if host else SOURCE).status_code == 200
    assert AdapterVersion.objects.get().lineage["conversions"][0] == "The zip was unpacked."
    assert not StagedFile.objects.exists()


def test_the_choices_of_an_upload_are_tags(http: Client, adapter: Adapter, folder: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", base_model_name_or_path="acme/our-copy")
    for path in other.iterdir():
        put(http, path.name, path.read_bytes())
    refused = create(http)
    assert (refused.status_code, refused.json()["error_code"]) == (422, "INVALID_PARAMETER_VALUE")
    assert refused.json()["errors"][0]["code"] == "other_base"
    assert create(http, keep="true", confirm_base="the same bytes").json()["code"] == "servable"
    for tags in ({"fold": "maybe"}, {"colour": "red"}, {"status": "ready"}):
        assert create(http, **tags).status_code == 422, tags
    assert StagedFile.objects.count() == 2, "what was refused can be registered again with another choice"
    assert create(http, confirm_base="the same bytes").status_code == 200
    assert AdapterVersion.objects.get().lineage["mlflow"]["tags"] == {}
