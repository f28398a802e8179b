"""Weights leave as a zip: as stored, as PEFT in another precision, or portable."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client
from safetensors.torch import load

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.artifacts import FolderStore
from registry.models import Adapter, AdapterVersion
from tests.builders import LAYERS, SHAPES, module_name, write_adapter
from tests.builders.adapters import flip_a_byte
from tests.builders.rest import client, problem, upload_adapter
from tests.fakes.server import closed_url

PLACE = "/api/v1/adapters/dora/versions/1"


def files_of(response: Any) -> dict[str, bytes]:
    assert response.status_code == 200, response.content
    assert response["Content-Type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(b"".join(response.streaming_content))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_a_download_is_what_was_published(ci: str, adapter: Adapter, alice: User, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "mine")
    version = AdapterVersion.publish(adapter, folder, method="upload", by=alice.as_actor())
    response = client(ci).get(f"{PLACE}/download/")
    assert f'filename="{version.served_name}.zip"' in response["Content-Disposition"]
    assert files_of(response) == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "query", [{"format": "portable"}, pytest.param({"format": "peft", "dtype": "bf16"}, marks=pytest.mark.slow)]
)
def test_an_export_is_an_adapter(query: dict[str, str], ci: str, version: AdapterVersion) -> None:
    files = files_of(client(ci).get(f"{PLACE}/export/", query))
    tensors = load(files["adapter_model.safetensors"])
    assert {str(tensor.dtype) for tensor in tensors.values()} == {
        {"bf16": "torch.bfloat16"}.get(query.get("dtype", ""), "torch.float32")
    }
    assert len(tensors) == 2 * LAYERS * len(SHAPES)
    assert f"base_model.model.{module_name(0, 'q_proj')}.lora_A.weight" in tensors
    config = json.loads(files["adapter_config.json"])
    assert (config["r"], config["lora_alpha"]) == (4, 4 if query["format"] == "portable" else 8)
    assert not list(settings.WORK_DIR.glob("tmp*")), "nothing is left behind"


@pytest.mark.parametrize("query", [{"format": "onnx"}, {"dtype": "int4"}])
def test_an_unknown_word_is_named(query: dict[str, str], ci: str, version: AdapterVersion) -> None:
    body = problem(client(ci).get(f"{PLACE}/export/", query), 422, "invalid")
    assert body["errors"][0]["field"] in query


def test_weights_that_are_gone_are_said(ci: str, version: AdapterVersion) -> None:
    place = FolderStore(Path(settings.ARTIFACT_STORE)).place(version.digest)
    place.rename(hidden := place.with_name("hidden"))
    try:
        for verb in ("export", "download"):
            assert str(version) in problem(client(ci).get(f"{PLACE}/{verb}/"), 503, "artifact_unreadable")["detail"]
    finally:
        hidden.rename(place)


@pytest.mark.threat("E9")
@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_flipped_byte_never_leaves(
    place: str, request: pytest.FixtureRequest, ci: str, adapter: Adapter, alice: User, tmp_path: Path
) -> None:
    """The tests share one content-addressed folder: these weights are no other test's."""
    store = request.getfixturevalue("bucket") if place == "bucket" else FolderStore(Path(settings.ARTIFACT_STORE))
    version = AdapterVersion.publish(
        adapter, write_adapter(tmp_path / "mine", seed=7333), method="upload", by=alice.as_actor()
    )
    flip_a_byte(store, version.digest)
    for verb in ("download", "export"):
        detail = problem(client(ci).get(f"{PLACE}/{verb}/"), 503, "artifact_unreadable")["detail"]
        assert "changed" in detail
    assert not list(settings.WORK_DIR.glob("tmp*")), "nothing is left behind"


def test_a_store_that_is_away_is_said(
    ci: str, version: AdapterVersion, settings: Any, s3_keys: None, tmp_path: Path
) -> None:
    settings.ARTIFACT_STORE, settings.S3_ENDPOINT_URL = "s3://hub/hub", closed_url()
    detail = problem(client(ci).get(f"{PLACE}/download/"), 503, "artifact_unreadable")["detail"]
    assert "does not answer" in detail
    answer = upload_adapter(client(ci), version.adapter, write_adapter(tmp_path / "new", seed=9))
    detail = problem(answer, 503, "store_away")["detail"]
    assert detail == "The bucket hub does not answer (EndpointConnectionError): nothing was changed, try again."
    assert answer["Retry-After"]
    assert version.adapter.versions.count() == 1


def test_other_projects_get_nothing(version: AdapterVersion, charlie: User) -> None:
    _, token = ApiToken.issue(name="other", project=Project.objects.get(slug="other"), scopes=["read"])
    for verb in ("export", "download"):
        problem(client(token).get(f"{PLACE}/{verb}/"), 404, "not_found")


def test_a_member_downloads_with_the_session(version: AdapterVersion, bob: User, client: Client) -> None:
    client.force_login(bob)
    assert "adapter_config.json" in files_of(client.get(f"{PLACE}/download/"))
