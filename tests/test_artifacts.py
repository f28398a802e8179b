"""The artifact store, in a folder and on S3's semantics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.artifacts import ArtifactError, ArtifactStore, FolderStore, S3Store, open_store


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    opened: Any = open_store("s3://artifacts/hub", endpoint_url=request.getfixturevalue("s3_endpoint"))
    opened.client.create_bucket(Bucket="artifacts")
    return opened


def folder(path: Path, **files: str) -> Path:
    (path / "deep").mkdir(parents=True)
    for name, text in files.items():
        (path / "deep" / name).write_text(text)
    return path


def test_what_goes_in_comes_out(store: ArtifactStore, tmp_path: Path) -> None:
    digest = store.put_dir(folder(tmp_path / "a", x="one", y="two"))
    fetched = store.fetch_dir(digest, tmp_path / "out")
    assert (fetched / "deep" / "x").read_text() == "one"
    assert store.has(digest)


def test_equal_content_has_one_place(store: ArtifactStore, tmp_path: Path) -> None:
    one = store.put_dir(folder(tmp_path / "a", x="same"))
    two = store.put_dir(folder(tmp_path / "b", x="same"))
    other = store.put_dir(folder(tmp_path / "c", x="other"))
    assert one == two != other


def test_what_is_missing_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="0000"):
        store.fetch_dir("0" * 64, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_is_found_and_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    digest = store.put_dir(folder(tmp_path / "a", x="one"))
    if isinstance(store, FolderStore):
        (store.place(digest) / "deep" / "x").write_text("two")
    elif isinstance(store, S3Store):
        store.client.put_object(Bucket="artifacts", Key=store.key(digest, "deep/x"), Body=b"two")
    with pytest.raises(ArtifactError, match="changed"):
        store.fetch_dir(digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".partial-*"))
