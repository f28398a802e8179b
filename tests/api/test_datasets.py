"""Datasets over REST and pages: at once when small, by a worker when large, line by line when broken."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from tests.builders import rows
from training.models import Dataset, TrainingRun, dataset
from training.tasks import check_dataset, check_datasets

GOOD = "".join(json.dumps(row) + "\n" for row in rows(60))


@pytest.fixture
def client(ci: str) -> Client:
    return Client(headers={"Authorization": f"Bearer {ci}"})


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "AT_ONCE_BYTES", 100)


def upload(client: Client, content: str, name: str = "rows.jsonl", **fields: Any) -> Any:
    file = SimpleUploadedFile(name, content.encode())
    return client.post("/api/v1/datasets/", {"project": "eu", "file": file, **fields})


def test_a_small_file_is_checked_at_once(client: Client) -> None:
    answer = upload(client, GOOD)
    assert answer.status_code == 201
    body = answer.json()
    assert (body["status"], body["format"], body["rows"]) == ("ready", "jsonl", 60)
    assert sum(body["splits"].values()) == 60
    assert upload(client, GOOD, name="again.jsonl").json()["id"] == body["id"]
    preview = client.get(f"/api/v1/datasets/{body['id']}/preview/").json()
    assert preview["rows"][0]["completion"].startswith("report")


def test_columns_are_mapped_and_the_format_named(client: Client) -> None:
    table = "question\tanswer\n" + "".join(f"why {n}?\tso {n}\n" for n in range(50))
    mapping = json.dumps({"prompt": "question", "completion": "answer"})
    body = upload(client, table, name="table", format="csv", mapping=mapping).json()
    assert (body["columns"], body["rows"]) == (["completion", "prompt"], 50)


@pytest.mark.parametrize(
    ("name", "content", "fields", "field", "code"),
    [
        ("rows.xlsx", GOOD, {}, "format", "unknown_format"),
        ("rows.jsonl", GOOD, {"format": "xml"}, "format", "invalid_choice"),
        ("rows.jsonl", GOOD, {"mapping": '{"answer": "x"}'}, "mapping", "bad_mapping"),
        ("rows.jsonl", GOOD, {"mapping": "[1]"}, "mapping", "invalid"),
        ("rows.jsonl", GOOD, {"mapping": '{"text": "body"}'}, "file.1.body", "missing_column"),
        ("rows.parquet", GOOD, {}, "file", "not_parquet"),
        ("rows.jsonl", GOOD + "{\n", {}, "file.61", "not_json"),
        ("rows.jsonl", '{"text": "alone"}\n', {}, "file", "too_short"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_leaves_nothing(
    client: Client, name: str, content: str, fields: dict[str, str], field: str, code: str
) -> None:
    answer = upload(client, content, name=name, **fields)
    assert answer.status_code in (400, 422)
    errors = answer.json()["errors"]
    assert (errors[0]["field"], errors[0]["code"]) == (field, code)
    assert not Dataset.objects.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rows.xlsx", "is a spreadsheet: save its table as CSV"),
        ("rows.xml", "is XML, which is not read: send its rows as JSON lines, CSV or Parquet"),
        ("rows.yaml.gz", "is YAML, which is not read"),
        ("rows.tar.gz", "is an archive: send the file of rows in it"),
        ("rows.jsonl.xz", "pack it as .gz, .zst or .bz2"),
        ("rows.pkl", "which could run a program"),
        ("rows.pdf", "is a document: save its text as .txt"),
        ("rows.avro", "is AVRO: send its rows as"),
        ("rows.dat", "is unknown: name it (format: jsonl, parquet, arrow, csv, text)"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_name_and_the_way_out(client: Client, name: str, words: str) -> None:
    (error,) = upload(client, GOOD, name=name).json()["errors"]
    assert (error["field"], error["code"]) == ("format", "unknown_format")
    assert words in error["message"]
    assert upload(client, GOOD, name="rows.dat", format="jsonl").status_code == 201


def test_a_large_file_is_answered_at_once_and_checked_by_a_worker(
    client: Client, small_limit: None, alice: User
) -> None:
    answer = upload(client, GOOD)
    body = answer.json()
    assert (answer.status_code, body["status"], body["rows"]) == (202, "checking", 0)
    assert client.get(f"/api/v1/datasets/{body['id']}/preview/").json()["rows"] == []
    check_dataset(body["id"])
    check_dataset(body["id"])
    after = client.get(f"/api/v1/datasets/{body['id']}/").json()
    assert (after["status"], after["rows"], after["message"]) == ("ready", 60, "")
    tags = list(AuditEvent.objects.filter(tag__startswith="dataset:").order_by("pk").values_list("tag", flat=True))
    assert tags == ["dataset:uploaded", "dataset:created"]


def test_a_large_file_with_bad_lines_ends_rejected_with_all_of_them(client: Client, small_limit: None) -> None:
    pk = upload(client, GOOD + '{"other": 1}\n{').json()["id"]
    check_dataset(pk)
    body = client.get(f"/api/v1/datasets/{pk}/").json()
    assert body["status"] == "rejected"
    assert [(error["line"], error["code"]) for error in body["errors"]] == [(61, "no_form"), (62, "not_json")]
    assert "Line 61" in body["message"]


def test_the_same_large_file_twice_is_one_dataset(client: Client, small_limit: None) -> None:
    first, second = (upload(client, GOOD).json()["id"] for _ in range(2))
    for pk in (first, second):
        check_dataset(pk)
    assert Dataset.objects.ready().get().pk == first
    assert f"number {first}" in Dataset.objects.get(pk=second).message
    repeated = client.get(f"/api/v1/datasets/{second}/").json()
    assert (repeated["status"], repeated["same_as"]) == ("rejected", first)
    # What is checked already is the dataset at once, and is found without being sent.
    assert upload(client, GOOD).json()["id"] == first
    query = {"project": "eu", "sha256": hashlib.sha256(GOOD.encode()).hexdigest(), "filename": "rows.jsonl"}
    assert client.get("/api/v1/datasets/lookup/", query).json() == {"dataset": first, "status": "ready"}
    assert client.get("/api/v1/datasets/lookup/", {**query, "filename": "rows.txt"}).json()["dataset"] is None


def test_a_check_whose_message_was_lost_is_found(client: Client, small_limit: None) -> None:
    pk = upload(client, GOOD).json()["id"]
    check_datasets()
    assert Dataset.objects.get(pk=pk).status == "checking"
    Dataset.objects.filter(pk=pk).update(created_at="2020-01-01T00:00Z")
    check_datasets()
    assert Dataset.objects.get(pk=pk).status == "ready"


def test_nothing_is_trained_on_what_is_not_checked(
    client: Client, small_limit: None, project: Project, adapter: Any
) -> None:
    pk = upload(client, GOOD).json()["id"]
    body = {"project": "eu", "adapter": adapter.slug, "dataset": pk}
    answer = client.post("/api/v1/training-runs/", body, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (422, "dataset_not_ready")
    assert not TrainingRun.objects.exists()


def test_the_pages_show_each_bad_line_and_each_state(small_limit: None, project: Project, alice: User) -> None:
    client = Client()
    client.force_login(alice)

    def sent(content: str, **fields: str) -> Any:
        file = SimpleUploadedFile("rows.jsonl", content.encode())
        return client.post("/datasets/", {"project": project.pk, "file": file, **fields}, follow=True)

    page = sent('{"a": 1}\n', mapping="prompt=a")
    assert page.status_code == 422
    assert "not_text" in page.content.decode()
    assert "as prompt=question" in sent(GOOD, mapping="prompt").content.decode()
    assert "A worker is reading its" in sent(GOOD).content.decode()
    pk = Dataset.objects.get().pk
    check_dataset(pk)
    assert "report each incident" in client.get(f"/datasets/{pk}/").content.decode()
