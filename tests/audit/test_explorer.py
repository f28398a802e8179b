"""The audit explorer: filters, one event with its change, exports that verify, and the reading of it noted."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from django.db import transaction
from django.test import Client

from adapterhub.accounts.models import Project, User
from adapterhub.audit import checkpoints, verifier
from adapterhub.audit.models import AuditEvent, UnsealedEvent
from adapterhub.audit.sentences import sentence
from adapterhub.audit.tags import Tag


@pytest.fixture
def auditor(project: Project, alice: User, bob: User, client: Client) -> Client:
    with transaction.atomic():
        AuditEvent.record(
            Tag.ADAPTER_CHANGED,
            project,
            by=alice.as_actor(),
            project=project,
            reason="first reason",
            before={"tags": ["a"], "kept": 1},
            after={"tags": ["b"], "kept": 1},
        )
        AuditEvent.record(Tag.PROJECT_CHANGED, bob, by=bob.as_actor(), project=project, reason="second reason")
    client.force_login(alice)
    return client


@pytest.mark.parametrize(
    ("query", "word_shown"),
    [
        ("tag=adapter:changed", "first"),
        ("who=BO", "second"),
        ("object=bob", "second"),
        ("project=eu&who=ali", "first"),
        ("object_type=user", "second"),
        ("tag=project:changed&since=2000-01-01", "second"),
    ],
)
def test_filters_show_what_was_asked_for(auditor: Client, query: str, word_shown: str) -> None:
    page = auditor.get(f"/audit/?{query}").content.decode()
    assert [word for word in ("first", "second") if f"{word} reason" in page] == [word_shown]


def test_until_leaves_out_what_came_later(auditor: Client) -> None:
    assert "reason</td>" not in auditor.get("/audit/?until=2000-01-01").content.decode()


@pytest.mark.parametrize("query", ["since=soon", "tag=nothing:known", "project=other"])
def test_a_filter_that_cannot_be_read_is_named_and_shows_nothing(auditor: Client, charlie: User, query: str) -> None:
    answer = auditor.get(f"/audit/?{query}")
    assert answer.status_code == 422
    assert "errorlist" in answer.content.decode()
    assert "first reason" not in answer.content.decode()


def test_an_event_shows_what_changed_and_only_that(auditor: Client, charlie: User) -> None:
    event = AuditEvent.objects.get(tag="adapter:changed")
    page = auditor.get(f"/audit/{event.pk}/").content.decode()
    assert "<del>[&quot;a&quot;]</del>" in page
    assert "<ins>[&quot;b&quot;]</ins>" in page
    words, raw = page.split("The raw record", 1)
    assert "kept" not in words
    assert "alice changed the adapter" in words
    assert event.hash_hex in raw
    outsider = Client()
    outsider.force_login(charlie)
    assert outsider.get(f"/audit/{event.pk}/").status_code == 404


def test_events_stand_in_words_and_reads_are_left_out_until_asked_for(
    auditor: Client, project: Project, alice: User
) -> None:
    with transaction.atomic():
        AuditEvent.record(Tag.DATASET_READ, project, by=alice.as_actor(), project=project, reason="a mere look")
    page = auditor.get("/audit/").content.decode()
    assert "bob changed the project" in page
    assert "project:changed</a>" not in page
    assert "a mere look" not in page
    for query in ("reads=on", "tag=dataset:read"):
        assert "a mere look" in auditor.get(f"/audit/?{query}").content.decode()


@pytest.mark.parametrize("tag", Tag)
def test_every_tag_has_words(tag: Tag) -> None:
    words = sentence(tag, "alice", "X")
    assert words.startswith("alice ")
    assert not {"_", "{", "}"} & set(words)
    assert ":" not in words.replace(": X", "")


def test_a_noun_stands_once_and_the_system_is_named_as_such() -> None:
    requested = sentence("training_run:requested", "alice", "run 12345678 of dora")
    assert requested == "alice requested the training run 12345678 of dora"
    assert sentence("rollout:promoted", "system:rollout", "X") == "The system (rollout) promoted the candidate: X"


def test_reading_the_trail_is_noted(auditor: Client) -> None:
    auditor.get("/audit/?who=bob")
    assert UnsealedEvent.objects.latest("id").fields["object_name"] == "/audit/?who=bob"


def test_the_downloaded_bundle_verifies_without_the_installation(
    auditor: Client, project: Project, tmp_path: Path
) -> None:
    checkpoints.write(project)
    answer = auditor.get("/api/v1/audit/export/?project=eu&as=bundle")
    zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content))).extractall(tmp_path)
    bundle = tmp_path / "bundle"
    command = [
        sys.executable,
        verifier.__file__,
        str(bundle / "events.jsonl"),
        "--checkpoints",
        str(bundle / "checkpoints"),
        "--public-key",
        str(bundle / "public-key.pem"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True), done.stderr
    assert {"manifest.json", "events.csv"} <= {path.name for path in bundle.iterdir()}
