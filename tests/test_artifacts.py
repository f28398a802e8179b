"""The artifact store, in a folder and on S3's semantics."""

from __future__ import annotations

import errno
import socket
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from django.core.management import call_command
from django.utils.timezone import now

from adapterhub.accounts.models import User
from adapterhub.artifact_gc import collect
from adapterhub.artifacts import ArtifactError, ArtifactStore, FolderStore, S3Store, StoreAway, code_of, open_store
from adapterhub.audit.checkpoint_store import lock_of
from registry.models import Adapter, AdapterVersion
from registry.tasks import check_version
from tests.builders import write_adapter
from tests.builders.rest import client, problem
from tests.s3 import in_bucket


@pytest.fixture(params=["folder", "s3", "rclone"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("s3_keys")
    endpoint = request.getfixturevalue("rclone_endpoint" if request.param == "rclone" else "s3_endpoint")
    return in_bucket(f"artifacts-{uuid.uuid4().hex}", endpoint)


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


def test_a_bucket_may_be_the_host_name(
    virtual_endpoint: str, s3_keys: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that checks signatures, and knows the bucket only by its host name."""
    real_getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **more: real_getaddrinfo(
            "127.0.0.1" if str(host).endswith(".s3.test") or host == "s3.test" else host, *rest, **more
        ),
    )
    opened: Any = open_store("s3://by-host/hub", endpoint_url=virtual_endpoint, addressing="virtual")
    opened.client.create_bucket(Bucket="by-host")
    digest = opened.put_dir(folder(tmp_path / "a", x="one"))
    assert (opened.fetch_dir(digest, tmp_path / "out") / "deep" / "x").read_text() == "one"
    link = opened.download_urls(digest, 60)["x"]
    assert link.startswith("http://by-host.s3.test:")
    assert httpx.get(link, trust_env=False).text == "one"
    by_path: Any = open_store("s3://by-host/hub", endpoint_url=virtual_endpoint)
    with pytest.raises(StoreAway, match="NoSuchBucket"):
        by_path.put_dir(folder(tmp_path / "b", x="two"))


def test_the_reason_of_an_upload_that_failed_beside_another_is_named() -> None:
    refused = ClientError({"Error": {"Code": "NoSuchBucket"}}, "PutObject")
    one, other = S3UploadFailedError("a"), S3UploadFailedError("b")
    one.__context__, other.__context__ = refused, one
    assert [code_of(error) for error in (refused, one, other)] == ["NoSuchBucket"] * 3
    assert code_of(ConnectionError()) == "ConnectionError"


def test_what_is_given_is_stored_too(store: ArtifactStore, tmp_path: Path) -> None:
    digest = store.give_dir(folder(tmp_path / "a", x="one"))
    assert store.give_dir(folder(tmp_path / "twin", x="one")) == digest
    with store.opened(digest) as opened:
        assert (opened / "deep" / "x").read_text() == "one"
    with pytest.raises(ArtifactError, match="0000"), store.opened("0" * 64):
        pass


def test_a_given_folder_is_moved_on_its_own_disk(tmp_path: Path) -> None:
    source = folder(tmp_path / "a", x="one")
    number = (source / "deep" / "x").stat().st_ino
    store = FolderStore(tmp_path / "store")
    place = store.place(store.give_dir(source))
    assert (place / "deep" / "x").stat().st_ino == number
    assert not source.exists()


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
        store.client.put_object(Bucket=store.bucket, Key=store.key(digest, "deep/x"), Body=b"two")
    with pytest.raises(ArtifactError, match="changed"):
        store.fetch_dir(digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".partial-*"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "surplus"])
def test_a_damaged_copy_is_made_again_and_never_vanishes(store: ArtifactStore, tmp_path: Path, damage: str) -> None:
    digest = store.put_dir(folder(tmp_path / "a", x="one", y="two"))
    copy = store.fetch_dir(digest, tmp_path / "out")
    before = copy.stat().st_ino
    if damage == "surplus":
        (copy / "deep/z").write_text("three")
    elif damage == "missing":
        (copy / "deep/x").unlink()
    else:
        (copy / "deep/x").write_text("onf" if damage == "flipped" else "o")
    assert store.fetch_dir(digest, copy) == copy
    assert {path.name: path.read_text() for path in (copy / "deep").iterdir()} == {"x": "one", "y": "two"}
    assert copy.stat().st_ino == before, "the folder itself stays: an engine may hold it"
    assert not list(tmp_path.glob(".partial-*"))


def test_a_damaged_copy_stays_while_the_store_is_damaged_too(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    digest = store.put_dir(folder(tmp_path / "a", x="one"))
    copy = store.fetch_dir(digest, tmp_path / "out")
    for place in (copy, store.place(digest)):
        (place / "deep/x").write_text("two")
    with pytest.raises(ArtifactError, match="changed"):
        store.fetch_dir(digest, copy)
    assert (copy / "deep/x").read_text() == "two"


def test_a_full_disk_leaves_the_copy_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FolderStore(tmp_path / "store")
    digest = store.put_dir(folder(tmp_path / "a", x="one"))
    copy = store.fetch_dir(digest, tmp_path / "out")
    (copy / "deep/x").write_text("two")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copytree", full)
    with pytest.raises(OSError, match="No space"):
        store.fetch_dir(digest, copy)
    assert (copy.is_dir(), list(tmp_path.glob(".partial-*"))) == (True, [])
    monkeypatch.undo()
    store.fetch_dir(digest, copy)
    assert (copy / "deep/x").read_text() == "one"


def test_what_is_old_is_dropped_and_what_was_put_again_stays(store: ArtifactStore, tmp_path: Path) -> None:
    digest = store.put_dir(folder(tmp_path / "a", x="one"))
    ((stored, at),) = store.stored()
    assert stored == digest
    assert not store.drop(digest, at)
    assert store.fetch_dir(digest, tmp_path / "out").is_dir()
    assert store.drop(digest, at + timedelta(seconds=1))
    assert not store.has(digest)
    assert list(store.stored()) == []


def test_garbage_is_what_no_row_names(store: ArtifactStore, version: AdapterVersion, tmp_path: Path) -> None:
    digest = store.put_dir(version.stored(tmp_path / "version"))
    orphan = store.put_dir(folder(tmp_path / "a", x="orphan"))
    assert digest == version.digest
    later = timedelta(seconds=-60)  # everything was put "before" a minute from now
    assert list(collect(store, timedelta(hours=1), dry_run=False)) == [], "the grace time"
    assert list(collect(store, later, dry_run=True)) == [orphan]
    assert store.has(orphan)
    assert list(collect(store, later, dry_run=False)) == [orphan]
    assert (store.has(orphan), store.has(digest)) == (False, True)


def test_the_command_collects(
    version: AdapterVersion, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.ARTIFACT_STORE = str(tmp_path / "store")
    orphan = open_store(settings.ARTIFACT_STORE).put_dir(folder(tmp_path / "a", x="orphan"))
    call_command("collect_garbage", "--dry-run", "--grace-hours=-1")
    assert "1 artifact(s) would be deleted" in capsys.readouterr().out
    call_command("collect_garbage", "--grace-hours=-1")
    assert orphan in capsys.readouterr().out
    assert not open_store(settings.ARTIFACT_STORE).has(orphan)


def test_a_wrong_secret_is_refused(rclone_endpoint: str, s3_keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    in_bucket("signed", rclone_endpoint)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ClientError, match=r"403|SignatureDoesNotMatch"):
        list(open_store("s3://signed/hub", endpoint_url=rclone_endpoint).stored())


def test_files_go_straight_to_the_store_and_back(
    bucket: S3Store, ci: str, adapter: Adapter, alice: User, tmp_path: Path
) -> None:
    source = write_adapter(tmp_path / "mine")
    place = "/api/v1/adapters/dora/versions/"
    begun = client(ci).post(f"{place}uploads/").json()
    assert begun["urls"].keys() == {path.name for path in source.iterdir()}
    early = problem(client(ci).post(place, {"upload": begun["upload"]}), 422, "invalid")
    assert "was not uploaded" in early["detail"]
    for name, url in begun["urls"].items():
        assert httpx.put(url, content=(source / name).read_bytes(), trust_env=False).status_code == 200
    created = client(ci).post(place, {"upload": begun["upload"]})
    assert created.status_code == 201, created.json()
    problem(client(ci).get(f"{place}1/links/"), 503, "artifact_unreadable")
    check_version(AdapterVersion.objects.get().pk)
    links = client(ci).get(f"{place}1/links/").json()
    url = links["urls"]["adapter_model.safetensors"]
    weights = httpx.get(url, trust_env=False)
    assert weights.content == (source / "adapter_model.safetensors").read_bytes()
    assert httpx.get(url.replace("X-Amz-Signature=", "X-Amz-Signature=0"), trust_env=False).status_code == 403
    assert not [key for key in keys(bucket) if "incoming" in key], "nothing of the upload is left"


def keys(store: S3Store) -> list[str]:
    return [item["Key"] for item in store.client.list_objects_v2(Bucket=store.bucket).get("Contents", [])]


def test_an_upload_is_of_one_adapter_and_was_begun_here(bucket: S3Store, ci: str, adapter: Adapter) -> None:
    begun = client(ci).post("/api/v1/adapters/dora/versions/uploads/").json()
    assert client(ci).post("/api/v1/adapters/", {"project": "eu", "slug": "b", "base_model": "tiny"}).status_code == 201
    for slug, upload in (("b", begun["upload"]), ("dora", begun["upload"] + "x"), ("dora", "../../x")):
        body = problem(client(ci).post(f"/api/v1/adapters/{slug}/versions/", {"upload": upload}), 422, "invalid")
        assert body["errors"][0]["field"] == "upload"


def test_a_folder_gives_no_links(ci: str, version: AdapterVersion) -> None:
    problem(client(ci).get("/api/v1/adapters/dora/versions/1/links/"), 409, "no_links")
    problem(client(ci).post("/api/v1/adapters/dora/versions/uploads/"), 409, "no_links")


def test_every_key_in_the_store_is_ours(bucket: S3Store, version: AdapterVersion) -> None:
    names = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    assert set(keys(bucket)) == {f"hub/{version.digest}/{name}" for name in names}


def test_object_lock_holds_what_a_version_refers_to(s3_endpoint: str, s3_keys: None, tmp_path: Path) -> None:
    locked = in_bucket(f"locked-{uuid.uuid4().hex}", s3_endpoint, ObjectLockEnabledForBucket=True)
    digest = locked.put_dir(folder(tmp_path / "a", x="one"))
    locked.hold(digest)
    key = locked.key(digest, "deep/x")
    (object_version,) = locked.client.list_object_versions(Bucket=locked.bucket, Prefix=key)["Versions"]
    with pytest.raises(ClientError, match="AccessDenied"):
        locked.client.delete_object(Bucket=locked.bucket, Key=key, VersionId=object_version["VersionId"])
    assert locked.fetch_dir(digest, tmp_path / "out").is_dir()
    assert not locked.drop(digest, now() - timedelta(hours=1))


@pytest.mark.parametrize(("code", "status"), [("AccessDenied", 403), ("InternalError", 500), ("SlowDown", 503)])
def test_a_checkpoint_is_not_kept_without_the_lock_because_nobody_could_ask(
    bucket: S3Store, code: str, status: int
) -> None:
    with Stubber(bucket.client) as far_side:
        far_side.add_client_error("get_object_lock_configuration", code, http_status_code=status)
        with pytest.raises(ClientError, match=code):
            lock_of(bucket)
