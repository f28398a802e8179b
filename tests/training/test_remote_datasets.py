"""Datasets of a bucket and of a hub: read by a worker as far as operators allow, and pinned to the bytes it read."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from huggingface_hub import constants

from adapterhub.accounts.models import Project, User
from adapterhub.artifacts import S3Store
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Invalid
from tests.fakes import hub
from tests.s3 import in_bucket
from training.datasets import remote
from training.datasets.hub_process import places_in, require_own_files
from training.datasets.remote import Source
from training.models import Dataset

ROWS = [{"prompt": f"Where is {n}?", "completion": f"At pier {n}."} for n in range(40)]
OTHER = [{"prompt": f"Who is {n}?", "completion": "Nobody."} for n in range(40)]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture
def team(s3_endpoint: str, s3_keys: None, settings: Any) -> S3Store:
    """A bucket of a team, with versions, which its project may read."""
    store = in_bucket(f"team-{uuid.uuid4().hex}", s3_endpoint)
    store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    settings.S3_ENDPOINT_URL = s3_endpoint
    settings.DATASET_SOURCES = [f"eu=s3://{store.bucket}/rows"]
    return store


def put(store: S3Store, key: str, content: bytes) -> str:
    return str(store.client.put_object(Bucket=store.bucket, Key=key, Body=content)["VersionId"])


def post(client: Client, **body: Any) -> Any:
    return client.post("/api/v1/datasets/", json.dumps({"project": "eu", **body}), content_type="application/json")


def judged(pk: int) -> Dataset:
    dataset = Dataset.begin_check(pk)
    assert dataset
    dataset.judge()
    dataset.refresh_from_db()
    return dataset


def test_an_object_is_read_by_a_worker_and_pinned(client: Client, alice: User, project: Project, team: S3Store) -> None:
    first = put(team, "rows/support.jsonl", lines(ROWS))
    client.force_login(alice)
    url = f"s3://{team.bucket}/rows/support.jsonl"
    answer = post(client, source=url, name="support")
    assert (answer.status_code, answer.json()["status"]) == (202, "checking")
    dataset = judged(answer.json()["id"])
    assert (dataset.status, dataset.message, dataset.rows) == ("ready", "", 40)
    digest = hashlib.sha256(lines(ROWS)).hexdigest()
    assert dataset.source["read"] == {"revision": first, "sha256": digest, "size": len(lines(ROWS))}
    assert AuditEvent.objects.get(tag="dataset:created").after["source"] == dataset.source

    # The object changes: what was read stays, and the version that it had can be read again.
    put(team, "rows/support.jsonl", lines(OTHER))
    again = judged(post(client, source=url, revision=first).json()["id"])
    assert again.status == "rejected"
    assert "This content is already the dataset support" in again.message
    newer = judged(post(client, source=url, name="newer").json()["id"])
    assert newer.digest not in ("", dataset.digest)
    page = client.get(f"/datasets/{dataset.pk}/").content.decode()
    assert url in page
    assert first in page


@pytest.mark.threat("G6")
@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("s3://{bucket}/secret/rows.jsonl", "source_not_allowed"),
        ("s3://{bucket}/rows-of-others/rows.jsonl", "source_not_allowed"),
        ("s3://other/rows/rows.jsonl", "source_not_allowed"),
        ("hf://acme/rows", "source_not_allowed"),
        ("s3://{bucket}", "bad_source"),
        ("https://example.org/rows.jsonl", "bad_source"),
        ("file:///etc/passwd", "bad_source"),
        ("hf://../../etc", "bad_source"),
        ("s3://{bucket}/rows/../secret/rows.jsonl", "bad_source"),
        ("s3://{bucket}/rows/./rows.jsonl", "bad_source"),
        ("s3://{bucket}/rows//rows.jsonl", "bad_source"),
    ],
)
def test_only_what_operators_allow_is_read(
    url: str, code: str, client: Client, alice: User, project: Project, team: S3Store
) -> None:
    client.force_login(alice)
    answer = post(client, source=url.format(bucket=team.bucket))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, code)
    assert answer.json()["errors"][0]["field"] == "source"
    assert not Dataset.objects.exists()


@pytest.mark.threat("G6")
def test_another_project_and_the_artifact_store_are_kept_apart(team: S3Store, settings: Any) -> None:
    url = f"s3://{team.bucket}/rows/support.jsonl"
    Source(url).require_allowed("eu")
    with pytest.raises(Invalid, match="ADAPTERHUB_DATASET_SOURCES"):
        Source(url).require_allowed("us")
    settings.ARTIFACT_STORE = f"s3://{team.bucket}/rows"
    with pytest.raises(Invalid, match="artifact store"):
        Source(url).require_allowed("eu")


@pytest.mark.slow
@pytest.mark.threat("G6")
def test_a_right_that_was_withdrawn_meanwhile_is_withdrawn(
    client: Client, alice: User, project: Project, team: S3Store, settings: Any
) -> None:
    put(team, "rows/a.jsonl", lines(ROWS))
    client.force_login(alice)
    pk = post(client, source=f"s3://{team.bucket}/rows/a.jsonl").json()["id"]
    settings.DATASET_SOURCES = []
    assert "is not allowed here" in judged(pk).message


@pytest.mark.parametrize(
    ("key", "revision", "reason"), [("rows/none.jsonl", "", "NoSuchKey"), ("rows/a.jsonl", "none", "InvalidArgument")]
)
def test_what_a_bucket_does_not_give_is_told(
    key: str, revision: str, reason: str, client: Client, alice: User, project: Project, team: S3Store
) -> None:
    put(team, "rows/a.jsonl", lines(ROWS))
    client.force_login(alice)
    dataset = judged(post(client, source=f"s3://{team.bucket}/{key}", revision=revision).json()["id"])
    assert dataset.status == "rejected"
    assert "cannot be read" in dataset.message


def test_a_broken_line_of_an_object_is_told_by_its_number(
    client: Client, alice: User, project: Project, team: S3Store
) -> None:
    put(team, "rows/a.jsonl", lines(ROWS) + b"{no json\n")
    client.force_login(alice)
    dataset = judged(post(client, source=f"s3://{team.bucket}/rows/a.jsonl").json()["id"])
    assert (dataset.status, dataset.errors[0]["line"]) == ("rejected", 41)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[hub.Hub]:
    settings.DATASET_SOURCES = ["hf://acme"]
    with hub.running() as server:
        # This process has read the variable already; the child that it starts reads it anew.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.mark.slow
def test_a_hubs_dataset_is_read_with_its_commit(client: Client, alice: User, project: Project, far: hub.Hub) -> None:
    name = "datasets/acme/harbour"
    far.repositories[name] = {"train.jsonl": lines(ROWS), "test.jsonl": lines(OTHER[:5]), "README.md": b"# Harbour\n"}
    client.force_login(alice)
    dataset = judged(post(client, source="hf://acme/harbour", revision="main").json()["id"])
    assert (dataset.status, dataset.message) == ("ready", "")
    assert dataset.splits == {"train": 40, "eval": 5}
    assert dataset.source["read"]["revision"] == far.head(name)
    alone = judged(post(client, source="hf://acme/harbour", split="train", name="alone").json()["id"])
    assert (alone.rows, alone.splits["train"]) == (40, 36)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"source": "hf://acme/none"}, "404"),
        ({"source": "hf://acme/harbour", "revision": "gone"}, "404"),
        ({"source": "hf://acme/harbour", "split": "dev"}, "dev"),
    ],
)
def test_what_a_hub_does_not_give_is_told(
    body: dict[str, str], reason: str, client: Client, alice: User, project: Project, far: hub.Hub
) -> None:
    far.repositories["datasets/acme/harbour"] = {"train.jsonl": lines(ROWS)}
    client.force_login(alice)
    dataset = judged(post(client, **body).json()["id"])
    assert dataset.status == "rejected"
    assert reason in dataset.message


CARD = "---\nconfigs:\n- config_name: default\n  data_files: {place}\n---\n"
PLACES = [
    "{inside}/latest.jsonl",
    "'file://{secret}'",
    "{secret}",
    "../../../../../../..{secret}",
    "[{{split: train, path: '{secret}'}}]",
    "'zip://*.jsonl::{inside}/a.zip'",
    "hf://datasets/acme/private/train.jsonl",
]


@pytest.fixture
def inside() -> Iterator[tuple[str, list[str]]]:
    """A service in the workers' network, and the paths that were requested there."""
    paths: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", paths
        server.shutdown()


@pytest.mark.threat("G7")
def test_a_hubs_dataset_names_no_files_but_its_own(
    far: hub.Hub, inside: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its card may name any place, which the library asks before it says that it is not the dataset's."""
    url, paths = inside
    secret = tmp_path / "secret.txt"
    secret.write_text("the installation's key\n")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for number, place in enumerate(PLACES):
        name = f"acme/card-{number}"
        card = CARD.format(place=place.format(inside=url, secret=secret)).encode()
        far.repositories[f"datasets/{name}"] = {"train.jsonl": lines(ROWS), "README.md": card}
        with pytest.raises(ValueError, match="no file of the dataset"):
            require_own_files(name, far.head(f"datasets/{name}"))
    assert not paths


@pytest.mark.threat("G7")
def test_a_card_that_unfolds_is_given_up() -> None:
    """Each value stands twice in the next: two to the power of forty in a card of a kilobyte."""
    value: Any = "train.jsonl"
    for _ in range(40):
        value = [value, value]
    with pytest.raises(ValueError, match="too many files"):
        list(places_in({"configs": [{"data_files": value}]}))
    assert list(places_in({"configs": {"data_files": {"train": ["a.jsonl", "b.jsonl"]}, "data_dir": "rows"}})) == [
        "rows",
        "b.jsonl",
        "a.jsonl",
    ]


@pytest.mark.threat("G7")
@pytest.mark.slow
def test_rows_of_a_hub_open_no_place(
    client: Client, alice: User, project: Project, far: hub.Hub, inside: tuple[str, list[str]]
) -> None:
    """A column of images holds addresses and paths, which a row's reading would open."""
    url, paths = inside
    card = b"---\ndataset_info:\n  features:\n  - name: picture\n    dtype: image\n---\n"
    rows = "".join(json.dumps({"picture": f"{url}/picture.png"}) + "\n" for _ in range(3)).encode()
    far.repositories["datasets/acme/pictures"] = {"train.jsonl": rows, "README.md": card}
    client.force_login(alice)
    dataset = judged(post(client, source="hf://acme/pictures").json()["id"])
    assert dataset.status == "rejected"
    assert "'picture' holds Image" in dataset.message
    assert not paths


@pytest.mark.threat("G7")
@pytest.mark.slow
def test_a_hubs_dataset_that_fills_the_disk_is_given_up(
    client: Client, alice: User, project: Project, far: hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MOST_BYTES", 100_000)
    rows = gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 20_000)
    far.repositories["datasets/acme/packed"] = {"train.jsonl.gz": rows}
    client.force_login(alice)
    dataset = judged(post(client, source="hf://acme/packed").json()["id"])
    assert (len(rows) < 10_000, dataset.status) == (True, "rejected")
    assert "split it" in dataset.message


def test_a_file_or_a_source_and_not_both(client: Client, alice: User, project: Project) -> None:
    client.force_login(alice)
    assert post(client).json()["errors"][0]["field"] == "file"
    assert post(client, revision="main").status_code in (400, 422)
    page = client.post("/datasets/", {"project": project.pk, "source": "hf://acme/rows"})
    assert "ADAPTERHUB_DATASET_SOURCES" in page.content.decode()
    assert "Choose a file, or name a source" in client.post("/datasets/", {"project": project.pk}).content.decode()
