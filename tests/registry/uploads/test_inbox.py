"""A folder of the project's inbox becomes a version like an upload; no name leads anywhere else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from registry.models import Adapter, AdapterVersion, VersionStatus
from registry.tasks import check_version
from tests.builders import write_adapter
from tests.builders.rest import client, problem

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def inbox(adapter: Adapter) -> Path:
    place = settings.INBOX_DIR / adapter.project.slug
    shutil.rmtree(settings.INBOX_DIR, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def request_upload(ci: str, adapter: Adapter, name: str) -> Any:
    return client(ci).post(f"/api/v1/adapters/{adapter}/versions/", {"folder": name})


def test_it_becomes_a_version_after_its_check(ci: str, adapter: Adapter, inbox: Path) -> None:
    folder = write_adapter(inbox / "nightly", seed=61)
    (folder / "README.md").write_text("a snapshot of a hub holds more than the two files")
    assert request_upload(ci, adapter, "nightly").status_code == 201
    version = AdapterVersion.objects.get()
    assert version.status == VersionStatus.CHECKING
    check_version(version.pk)
    version.refresh_from_db()
    assert version.status == VersionStatus.READY
    assert (folder / WEIGHTS).exists(), "the operator's files stay"


@pytest.mark.threat("E8")
@pytest.mark.parametrize("name", ["../us/theirs", "/etc", "..", ".hidden", "a/b", "a\\b", "a\0b", "%2e%2e", "x" * 200])
def test_a_path_is_no_name(ci: str, adapter: Adapter, inbox: Path, name: str) -> None:
    write_adapter(settings.INBOX_DIR / "us" / "theirs")
    assert request_upload(ci, adapter, name).status_code == 422
    assert not AdapterVersion.objects.exists()


def link_folder(inbox: Path, elsewhere: Path) -> None:
    (inbox / "bad").symlink_to(elsewhere)


def link_file(inbox: Path, elsewhere: Path) -> None:
    shutil.copytree(elsewhere, inbox / "bad")
    (inbox / "bad" / WEIGHTS).unlink()
    (inbox / "bad" / WEIGHTS).symlink_to(elsewhere / WEIGHTS)


def pipe(inbox: Path, elsewhere: Path) -> None:
    shutil.copytree(elsewhere, inbox / "bad")
    (inbox / "bad" / WEIGHTS).unlink()
    os.mkfifo(inbox / "bad" / WEIGHTS)


def lacking(inbox: Path, elsewhere: Path) -> None:
    (inbox / "bad").mkdir()


@pytest.mark.threat("E8")
@pytest.mark.parametrize("lay", [link_folder, link_file, pipe, lacking])
def test_links_and_pipes_are_refused(ci: str, adapter: Adapter, inbox: Path, tmp_path: Path, lay: Any) -> None:
    lay(inbox, write_adapter(tmp_path / "elsewhere"))
    assert "no folder" in problem(request_upload(ci, adapter, "bad"), 422, "invalid")["detail"]
    assert not AdapterVersion.objects.exists()
