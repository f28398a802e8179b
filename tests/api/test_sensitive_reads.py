"""Whoever takes weights, reads rows or reads the trail is recorded, by whatever door; the batched path seals it."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.test import Client

from adapterhub.accounts.models import Project, User
from adapterhub.artifacts import S3Store
from adapterhub.audit.access_log import seal
from adapterhub.audit.models import AuditEvent, UnsealedEvent, verify
from registry.models import Adapter, AdapterVersion
from tests.builders import write_adapter
from tests.builders.rest import client
from training.models import Dataset

WEIGHTS = "/api/v1/adapters/dora/versions/1"


def status(client: Client, page: str) -> int:
    """Reads the answer to its end, which closes the file behind it."""
    answer = client.get(page)
    if answer.streaming:
        b"".join(answer.streaming_content)
    return answer.status_code


def reads() -> list[tuple[str, str, str]]:
    """(tag, who, what) of everything that was observed, in its order."""
    rows = UnsealedEvent.objects.order_by("id").values_list("fields", flat=True)
    return [(row["tag"], row["actor_name"], row["object_name"]) for row in rows if not row["tag"].startswith("session")]


@pytest.mark.threat("I5")
@pytest.mark.parametrize("verb", ["download/", pytest.param("export/?format=portable", marks=pytest.mark.slow)])
def test_who_took_the_weights_is_recorded(verb: str, ci: str, version: AdapterVersion, project: Project) -> None:
    """The request alone says it, before a byte leaves: an answer that was cut off was a read too."""
    assert status(client(ci), f"{WEIGHTS}/{verb}") == 200
    assert reads() == [("adapter_version:read", "token:ci", f"{WEIGHTS}/{verb.partition('?')[0]}")]
    assert seal() == 1
    event = AuditEvent.objects.get(tag="adapter_version:read")
    assert (event.project, event.auth_method, event.actor_name) == (project, "token", "token:ci")
    assert verify(project)[1] == []


@pytest.mark.threat("I5")
def test_who_took_links_to_the_weights_is_recorded(
    bucket: S3Store, ci: str, adapter: Adapter, alice: User, tmp_path: Path
) -> None:
    AdapterVersion.publish(adapter, write_adapter(tmp_path / "mine"), method="upload", by=alice.as_actor())
    assert client(ci).get(f"{WEIGHTS}/links/").status_code == 200
    assert reads() == [("adapter_version:read", "token:ci", f"{WEIGHTS}/links/")]


@pytest.mark.threat("I5")
def test_a_person_who_reads_weights_or_rows_is_recorded(
    version: AdapterVersion, dataset: Dataset, bob: User, client: Client
) -> None:
    client.force_login(bob)
    pages = [f"{WEIGHTS}/download/", f"/api/v1/datasets/{dataset.pk}/preview/", f"/datasets/{dataset.pk}/"]
    assert [status(client, page) for page in pages] == [200] * 3
    tags = ["adapter_version:read", "dataset:read", "dataset:read"]
    assert reads() == [(tag, "bob", page) for tag, page in zip(tags, pages, strict=True)]


def test_whoever_is_refused_took_nothing(version: AdapterVersion, charlie: User, client: Client) -> None:
    client.force_login(charlie)
    assert client.get(f"{WEIGHTS}/download/").status_code == 404
    assert reads() == []


@pytest.mark.threat("I5")
def test_every_way_to_read_the_trail_is_recorded(version: AdapterVersion, alice: User, client: Client) -> None:
    client.force_login(alice)
    event = AuditEvent.objects.get(tag="adapter_version:published")
    pages = [
        "/audit/",
        f"/audit/{event.pk}/",
        "/audit/roles/",
        "/api/v1/audit/events/?tag=alias:moved",
        f"/api/v1/audit/events/{event.pk}/",
    ]
    assert [client.get(page).status_code for page in pages] == [200] * 5
    assert reads() == [("audit:read", "alice", page) for page in pages]
    assert status(client, "/api/v1/audit/export/?project=eu") == 200
    assert reads()[-1][0] == "audit:exported"
