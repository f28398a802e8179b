"""Files that a browser sends in parts: what arrived stays, the rest follows, only a whole file becomes a version."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from adapterhub.accounts.models import User
from adapterhub.artifacts import S3Store
from registry.models import Adapter, AdapterVersion, StagedFile
from registry.models.staged_file import OF_BROWSERS
from registry.uploads import staging
from tests.builders import member, write_adapter
from tests.builders.rest import client as api_client

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLACE = "/adapters/eu.dora/upload/"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "sent")


@pytest.fixture
def person(alice: User) -> Client:
    client = Client()
    client.force_login(alice)
    return client


def send(person: Client, path: Path, offset: int, part: bytes | None) -> Any:
    fields: dict[str, Any] = {"name": path.name, "size": path.stat().st_size, "modified": 7, "offset": offset}
    if part is not None:
        fields["part"] = SimpleUploadedFile("part", part)
    return person.post(f"{PLACE}part/", fields)


def received(person: Client, path: Path) -> int:
    return int(send(person, path, 0, None).json()["received"])


def publish(person: Client, folder: Path) -> Any:
    staged = [[name, (folder / name).stat().st_size, 7] for name in (CONFIG, WEIGHTS)]
    return person.post(PLACE, {"staged": json.dumps(staged)}, headers={"HX-Request": "true"})


def test_an_upload_goes_on_where_it_broke_off(person: Client, adapter: Adapter, folder: Path, tmp_path: Path) -> None:
    config, weights = (folder / CONFIG).read_bytes(), (folder / WEIGHTS).read_bytes()
    assert received(person, folder / WEIGHTS) == 0
    assert send(person, folder / WEIGHTS, 0, weights[:1000]).json() == {"received": 1000}
    refused = send(person, folder / WEIGHTS, 0, weights[:1000])
    assert refused.status_code == 409, "a part that comes twice is kept once"
    assert received(person, folder / WEIGHTS) == 1000
    assert send(person, folder / CONFIG, 0, config).json() == {"received": len(config)}
    early = publish(person, folder)
    assert (early.status_code, "has not arrived as a whole" in early.content.decode()) == (422, True)
    assert send(person, folder / WEIGHTS, 1000, weights[1000:]).json() == {"received": len(weights)}
    assert publish(person, folder).status_code == 204
    stored = AdapterVersion.objects.get().stored(tmp_path / "stored")
    assert (stored / WEIGHTS).read_bytes() == weights
    assert not StagedFile.objects.exists(), "what became a version is dropped"


def test_a_bucket_keeps_the_parts_as_a_folder_does(
    bucket: S3Store, person: Client, adapter: Adapter, alice: User, folder: Path, tmp_path: Path
) -> None:
    for name in (CONFIG, WEIGHTS):
        content = (folder / name).read_bytes()
        assert send(person, folder / name, 0, content[:100]).status_code == 200
        assert send(person, folder / name, 100, content[100:]).status_code == 200
    assert publish(person, folder).status_code == 204
    stored = AdapterVersion.objects.get().stored(tmp_path / "stored")
    assert (stored / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    # More than what goes to a bucket in one piece.
    large = os.urandom(9 * 2**20)
    file = staging.replace(adapter.project, "run/large", io.BytesIO(large), by=alice.as_actor())
    assert staging.take(file, tmp_path / "large").read_bytes() == large
    assert staging.drop(StagedFile.objects.all()) == 1
    pages = bucket.client.get_paginator("list_objects_v2").paginate(Bucket=bucket.bucket, Prefix="hub/incoming/")
    assert [item["Key"] for page in pages for item in page.get("Contents", [])] == []


@pytest.mark.threat("A5")
def test_what_a_person_sends_is_theirs_alone(
    person: Client, ci: str, bob: User, charlie: User, adapter: Adapter, folder: Path
) -> None:
    """Neither another person who may publish here, nor a program of the project, nor another tenant comes near."""
    weights = (folder / WEIGHTS).read_bytes()
    send(person, folder / WEIGHTS, 0, weights)
    send(person, folder / CONFIG, 0, (folder / CONFIG).read_bytes())
    colleague = Client()
    colleague.force_login(member("carol", adapter.project, "trainer"))
    assert received(colleague, folder / WEIGHTS) == 0
    assert publish(colleague, folder).status_code == 422
    path = StagedFile.objects.filter(size_bytes=len(weights)).get().path
    files = "/api/2.0/mlflow-artifacts/artifacts"
    program = api_client(ci)
    assert path.startswith(f"{OF_BROWSERS}/")
    for place in (path, OF_BROWSERS):
        assert program.get(f"{files}/uploads/eu/{place}").status_code == 404
        assert program.put(f"{files}/uploads/eu/{place}/x", b"x", content_type="text/plain").status_code == 404
        assert program.delete(f"{files}/uploads/eu/{place}").status_code == 404
        assert program.get(files, {"path": f"uploads/eu/{place}"}).status_code == 404
    assert program.get(files, {"path": "uploads/eu"}).json() == {"files": []}
    source = f"mlflow-artifacts:/uploads/eu/{path.rpartition('/')[0]}"
    made = program.post("/api/2.0/mlflow/model-versions/create", {"name": "dora", "source": source})
    assert (made.status_code, made.json()["code"]) == (422, "bad_source")
    for user, status in ((bob, 403), (charlie, 404)):
        stranger = Client()
        stranger.force_login(user)
        assert send(stranger, folder / WEIGHTS, 0, b"x").status_code == status
    assert not AdapterVersion.objects.exists()


@pytest.mark.threat("D2")
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"size": 0}, 422),
        ({"size": "x"}, 422),
        ({"size": 2**60}, 422),
        ({"modified": -1}, 422),
        ({"name": "a" * 2000}, 422),
        ({"name": "a\0"}, 422),
        ({"offset": -1}, 422),
        ({"offset": 5}, 409),
        ({"size": 2}, 409),
        ({"name": "../../x"}, 200),
        ({"name": "\udcff"}, 200),
    ],
)
def test_a_part_is_bounded_and_its_name_leads_nowhere(
    person: Client, adapter: Adapter, fields: dict[str, Any], status: int
) -> None:
    body = {"name": "a", "size": 100, "modified": 1, "offset": 0, **fields}
    if body["name"] == "\udcff":
        body["name"] = b"\xff"
    answer = person.post(f"{PLACE}part/", {**body, "part": SimpleUploadedFile("part", b"abcd")})
    assert answer.status_code == status, answer.content[:300]


@pytest.mark.parametrize(
    "staged", ["[", "{}", '["a"]', '[["a", 1]]', '[["a", 1, -1]]', '[["a", true, 1]]', "[[1, 1, 1]]"]
)
def test_what_names_no_files_is_refused(person: Client, adapter: Adapter, staged: str) -> None:
    assert person.post(PLACE, {"staged": staged}).status_code == 422


def test_parts_at_the_same_time_leave_one_sequence(person: Client, adapter: Adapter, alice: User, folder: Path) -> None:
    """Of two that begin at one place the second is refused after its bytes arrived: the first one's are joined."""
    weights = folder / WEIGHTS
    send(person, weights, 0, b"a" * 10)
    file = StagedFile.objects.get()

    class Slow:
        """A part during whose arrival another one is kept."""

        def __init__(self) -> None:
            self.blocks = [b"c" * 10, b""]

        def read(self, _: int = -1) -> bytes:
            if len(self.blocks) == 2:
                assert send(person, weights, 10, b"b" * 10).status_code == 200
            return self.blocks.pop(0)

    with pytest.raises(staging.Conflict, match="20 bytes have arrived"):
        staging.append(adapter.project, file.path, 10, Slow(), by=alice.as_actor())  # type: ignore[arg-type]
    file.refresh_from_db()
    assert staging.take(file, folder / "joined").read_bytes() == b"a" * 10 + b"b" * 10
