"""A disk that is full: each upload, download and export answers 507 with the folder's name and leaves nothing behind.

The folder is a real small file system where the tests run as root, else a limit on the size of this process' files.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from django.conf import LazySettings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connections
from django.test import Client
from rest_framework.test import APIClient

from adapterhub import scratch_files
from adapterhub.accounts.models import User
from adapterhub.artifacts import FolderStore
from adapterhub.core.errors import OutOfSpace, TooMany
from adapterhub.jobs.child import Child
from adapterhub.jobs.tasks import sweep
from adapterhub.scratch_files import YOUNG_S, require_space, temporary_folder
from adapterhub.workspace import place_for_child, scratch
from registry.models import AdapterVersion
from tests.builders import rows, write_adapter
from tests.builders.rest import client, problem, upload_adapter
from tests.builders.walk import row_counts
from tests.tools import program
from tests.waiting import wait_until

PLACE = "/api/v1/adapters/dora/versions/1"
MOUNT, UMOUNT = (program(name) for name in ("mount", "umount"))
TRAIL = ("jsonl", "csv", "bundle")
Act = Callable[[APIClient, AdapterVersion, Path], Any]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = [MOUNT or "mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("Only root may mount a small file system; the limit on files stands in for it.")
    yield folder
    subprocess.run([UMOUNT, "-l", str(folder)], check=True)


@pytest.fixture
def full(request: pytest.FixtureRequest, tmp_path: Path, settings: LazySettings) -> Callable[[], Any]:
    """A work folder, and a context manager in which nothing can be written there."""
    try:
        settings.WORK_DIR = request.getfixturevalue("small")
    except pytest.skip.Exception:
        settings.WORK_DIR = tmp_path / "work"
        settings.WORK_DIR.mkdir()
        return no_files_grow
    return lambda: filled(settings.WORK_DIR)


@contextmanager
def no_files_grow() -> Iterator[None]:
    """Let no file of this process have more than 16 bytes; sockets and pipes are none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fill the file system to its last block."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        fill(file)
    yield
    ballast.unlink()


def fill(file: IO[bytes]) -> None:
    for block in (2**20, 4096):
        while block == 4096 or os.statvfs(file.fileno()).f_bavail * 4096 > 2 * block:
            file.write(b"x" * block)


def upload(api: APIClient, version: AdapterVersion, folder: Path) -> Any:
    return upload_adapter(api, version.adapter, folder)


def dataset(size: int) -> Act:
    def act(api: APIClient, version: AdapterVersion, folder: Path) -> Any:
        lines = "".join(json.dumps(row) + "\n" for row in rows(200)).encode()
        file = SimpleUploadedFile("rows.jsonl", lines * (1 + size // len(lines)))
        return api.post("/api/v1/datasets/", {"project": "eu", "file": file}, format="multipart")

    return act


def get(path: str) -> Act:
    return lambda api, version, folder: api.get(path)


ACTS = {
    "an adapter": upload,
    "a small dataset": dataset(0),
    "a dataset that is spooled": dataset(5 * 2**20),
    "a download": get(f"{PLACE}/download/"),
    "an export": get(f"{PLACE}/export/?format=portable"),
    "the trail": get("/api/v1/audit/export/?project=eu&as=bundle"),
}
# Two exports load torch.
SLOW = {"an export": [pytest.mark.slow]}


@pytest.mark.slow
@pytest.mark.threat("D24")
@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, [])) for name in ACTS])
def test_a_full_work_folder_is_507_with_its_name(
    full: Callable[[], Any], name: str, ci: str, version: AdapterVersion, settings: LazySettings, tmp_path: Path
) -> None:
    act = ACTS[name]
    before, folder = row_counts(), write_adapter(tmp_path / "new", seed=7)
    with full():
        answer = act(client(ci), version, folder)
    assert str(settings.WORK_DIR) in problem(answer, 507, "out_of_space")["detail"]
    assert [*settings.WORK_DIR.iterdir()] == []
    reads = {"audit.UnsealedEvent", "accounts.ApiToken"}
    changed = {name for name, count in row_counts().items() if count != before[name]}
    assert changed <= reads, "nothing is half made"
    with closing(act(client(ci), version, folder)) as again:
        assert again.status_code in (200, 201), "with room it goes"


@pytest.mark.threat("D24")
def test_a_page_says_so_too(
    full: Callable[[], Any], alice: User, dataset: Any, settings: LazySettings, tmp_path: Path
) -> None:
    """A form's file is written before its view begins."""
    page = Client(raise_request_exception=False, enforce_csrf_checks=True)
    page.force_login(alice)
    page.get("/datasets/")
    with full():
        file = SimpleUploadedFile("rows.jsonl", b"{}\n" * 2_000_000)
        answer = page.post("/datasets/", {"project": "eu", "file": file})
    assert (answer.status_code, str(settings.WORK_DIR) in answer.content.decode()) == (507, True)


@pytest.mark.threat("D24")
def test_a_full_store_is_507_with_its_name(
    small: Path, ci: str, version: AdapterVersion, settings: LazySettings, tmp_path: Path
) -> None:
    settings.ARTIFACT_STORE = str(small)
    folder = write_adapter(tmp_path / "new", seed=7)
    with filled(small):
        answer = upload(client(ci), version, folder)
    assert str(small) in problem(answer, 507, "out_of_space")["detail"]
    assert not list(small.rglob(".partial*"))
    assert not list(FolderStore(small).stored())
    assert version.adapter.versions.count() == 1


@pytest.mark.threat("D24")
def test_parts_and_mlflows_files_on_a_full_store_are_507_too(
    small: Path, ci: str, alice: User, version: AdapterVersion, settings: LazySettings
) -> None:
    settings.ARTIFACT_STORE = str(small)
    page, api = Client(raise_request_exception=False), client(ci)
    page.force_login(alice)
    part = {"name": "adapter_model.safetensors", "size": 2**20, "modified": 7, "offset": 0}
    file = "/api/2.0/mlflow-artifacts/artifacts/uploads/eu/run-1/adapter_model.safetensors"
    with filled(small):
        sent = page.post("/adapters/eu.dora/upload/part/", {**part, "part": SimpleUploadedFile("part", b"x" * 2**20)})
        put = api.generic("PUT", file, b"x" * 2**20, "application/octet-stream")
    assert (sent.status_code, str(small) in sent.content.decode()) == (507, True)
    assert (put.status_code, str(small) in put.content.decode()) == (507, True)
    assert [path for path in small.rglob("*") if path.is_file()] == []
    assert api.generic("PUT", file, b"x" * 2**20, "application/octet-stream").status_code == 200


def test_a_child_that_had_no_space_is_told_from_one_that_failed(tmp_path: Path, small: Path) -> None:
    require_space(tmp_path, "ValueError: no adapter")
    with pytest.raises(OutOfSpace, match=str(tmp_path.parent)):
        require_space(tmp_path, "safetensors_rust.SafetensorError: I/O error: No space left on device (os error 28)")
    with filled(small), pytest.raises(OutOfSpace):
        require_space(small, "")


def test_no_child_runs_unknown_on_a_full_disk(small: Path) -> None:
    (small / "log.txt").touch()
    with filled(small), pytest.raises(OSError, match="No space left"):
        Child(["time"], small / "events.jsonl", small / "log.txt")
    assert not children_of(small)


def children_of(folder: Path) -> list[str]:
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            pids += [process.name] if str(folder) in os.readlink(process / "fd/1") else []
        except OSError:
            continue
    return pids


LEAVING = """
import sys, time, tempfile
from pathlib import Path
import django
django.setup()
from adapterhub.workspace import WorkFolderUploadHandler, scratch
with scratch() as folder:
    (folder / "half").write_text("x")
    handler = WorkFolderUploadHandler()
    handler.new_file("file", "rows.jsonl", "text/plain", 1)
    handler.receive_data_chunk(b"half", 0)
    handler.file.flush()
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.threat("D21")
def test_what_a_killed_process_left_is_swept(settings: LazySettings, tmp_path: Path, db: None) -> None:
    home = tmp_path / "home"
    settings.WORK_DIR = home / "work"
    env = {**os.environ, "ADAPTERHUB_HOME": str(home), "ADAPTERHUB_SECRET_KEY": "x" * 50}

    process = subprocess.Popen([sys.executable, "-c", LEAVING], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    left = [*settings.WORK_DIR.glob("tmp*")]
    assert len(left) == 2
    make_old(left)
    sweep()
    assert all(path.exists() for path in left), "their process lives"
    process.kill()
    process.wait()
    process.stdout.close()
    with scratch() as own:
        make_old([own])
        sweep()
        assert [*settings.WORK_DIR.glob("tmp*")] == [own]


def make_old(paths: list[Path]) -> None:
    for path in paths:
        os.utime(path, (time.time() - 2 * YOUNG_S,) * 2)


@pytest.mark.threat("D21")
def test_a_copy_that_was_broken_off_is_swept_and_a_download_that_may_go_on_is_not(
    settings: LazySettings, tmp_path: Path, db: None
) -> None:
    settings.ARTIFACT_STORE = str(tmp_path / "store")
    broken = tmp_path / "store/ab/.partial-copy-x"
    resumable = settings.MODELS_DIR / ".partial-tiny"
    young = tmp_path / "store/ab/.partial-copy-young"
    for folder in (broken, resumable, young):
        folder.mkdir(parents=True, exist_ok=True)
    make_old([broken, resumable])
    sweep()
    assert [broken.exists(), resumable.exists(), young.exists()] == [False, True, True]
    resumable.rmdir()


@pytest.mark.threat("D22")
def test_exports_of_one_project_have_two_places(
    fresh_database: str, ci: str, version: AdapterVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third is told to wait, whatever the format; another project has places of its own."""
    inside, go_on = threading.Semaphore(0), threading.Event()

    def stay(*arguments: Any) -> None:
        inside.release()
        assert go_on.wait(30)
        raise OutOfSpace("It was held up.")

    monkeypatch.setattr("registry.exports.zip_export.rewrite", stay)

    def export(form: str) -> Any:
        try:
            return client(ci).get(f"{PLACE}/export/", {"format": form})
        finally:
            connections.close_all()

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(export, form) for form in ("merged", "portable")]
        for _ in running:
            assert inside.acquire(timeout=30)
        third = export("merged")
        with place_for_child(version.project.pk + 1):
            pass
        go_on.set()
    assert int(third["Retry-After"]) == 10
    problem(third, 429, "throttled")
    assert [each.result().status_code for each in running] == [507, 507]
    assert export("peft").status_code == 507


@pytest.mark.threat("D22")
@pytest.mark.parametrize("path", ["verify/?project=eu", *(f"export/?project=eu&as={kind}" for kind in TRAIL)])
def test_the_trail_is_read_in_the_same_places(ci: str, version: AdapterVersion, path: str) -> None:
    """Each reads all of it, and a stream keeps a connection of the database for as long as its caller likes."""
    api, eu = client(ci), version.project.pk
    with place_for_child(eu), place_for_child(eu):
        problem(api.get(f"/api/v1/audit/{path}"), 429, "throttled")
    answer = api.get(f"/api/v1/audit/{path}")
    assert answer.status_code == 200
    if path.endswith(("jsonl", "csv")):
        with place_for_child(eu), pytest.raises(TooMany), place_for_child(eu):
            pass
    answer.close()
    with place_for_child(eu), place_for_child(eu):
        pass


@pytest.mark.threat("D22")
def test_places_of_a_host_are_fewer_than_those_of_all_projects(settings: LazySettings, tmp_path: Path) -> None:
    settings.HOME, settings.CHILDREN = tmp_path, 1
    with place_for_child(1), pytest.raises(TooMany, match="this host"), place_for_child(2):
        pass
    with place_for_child(2):
        pass
    settings.CHILDREN = settings.PROJECT_CHILDREN = 0
    with place_for_child(1), place_for_child(1), place_for_child(1):
        pass


def test_a_held_folder_is_known_to_other_processes(tmp_path: Path) -> None:
    with temporary_folder(tmp_path) as folder:
        make_old([folder])
        assert not scratch_files.is_left_behind(folder)
    old = tmp_path / "tmpold"
    old.mkdir()
    assert not scratch_files.is_left_behind(old), "it may be about to be held"
    make_old([old])
    wait_until(lambda: scratch_files.is_left_behind(old), 1, "nobody holds it")
