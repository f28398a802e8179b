"""A byte flipped in the store: the load is refused and recorded, and what served before keeps serving."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.test import Client

from adapterhub.accounts.models import User
from adapterhub.artifacts import FolderStore
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter, AdapterVersion, Alias, Replica, Rollout, RolloutStatus
from registry.serving import served_folders
from registry.serving.open_alarms import remedy_of
from registry.serving.reconciler import reconcile
from registry.serving.valkey import valkey
from serving_client.protocol import WANTED_VERSION, WANTS
from tests.builders.adapters import flip_a_byte, flipped
from tests.builders.fleet import names, published
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server, closed_url
from tests.fakes.trickle import trickling
from tests.waiting import wait_until


def damage(version: AdapterVersion) -> None:
    flip_a_byte(FolderStore(Path(configured.ARTIFACT_STORE)), version.digest)


@pytest.mark.threat("E9")
def test_a_flipped_byte_is_refused_and_the_old_version_serves(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    adapter: Adapter,
    make_version: Callable[..., AdapterVersion],
    alice: User,
) -> None:
    reconcile()
    # The tests share one content-addressed store: these weights are no other test's.
    candidate = make_version(adapter, seed=7331)
    rollout = Rollout.create(
        alias=served, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor()
    )
    damage(candidate)
    reconcile()
    reconcile()
    stable = served.version.served_name
    assert names(engines[0]) == names(engines[1]) == {stable}, "no engine was ever told of the changed weights"
    events = AuditEvent.objects.filter(tag="replica:load_refused")
    assert events.count() == Replica.objects.count()
    assert all("changed" in event.reason for event in events)
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.FAILED
    table = published()
    assert table.aliases["eu/compliance"].stable == stable
    assert candidate.served_name not in table.versions or not table.versions[candidate.served_name].replicas
    assert set(table.versions[stable].replicas) == {server.url for _, server in engines}


def test_the_refusal_is_an_alarm_until_its_cause_is_gone(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    adapter: Adapter,
    make_version: Callable[..., AdapterVersion],
    alice: User,
    ci: str,
    client: Client,
) -> None:
    candidate = make_version(adapter, seed=7332)
    Rollout.create(alias=served, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor())
    damage(candidate)
    reconcile()
    alarms = client.get("/api/v1/alarms/", headers={"Authorization": f"Bearer {ci}"}).json()["results"]
    assert {(alarm["kind"], alarm["subject"]) for alarm in alarms} == {("load_refused", candidate.served_name)}
    assert len(alarms) == len(engines)
    assert all("were changed" in alarm["text"] for alarm in alarms)
    client.force_login(alice)
    page = client.get("/").content.decode()
    assert page.count("was not loaded on") == len(engines)
    Replica.objects.update(refused={})
    assert client.get("/api/v1/alarms/", headers={"Authorization": f"Bearer {ci}"}).json()["results"] == []


def test_a_damaged_local_copy_heals_from_the_store(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    adapter: Adapter,
    make_version: Callable[..., AdapterVersion],
    alice: User,
) -> None:
    reconcile()
    candidate = make_version(adapter, seed=7346)
    weights = candidate.served_folder() / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(flipped(weights.read_bytes()))
    Rollout.create(alias=served, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor())
    reconcile()
    assert names(engines[0]) == names(engines[1]) == {served.version.served_name, candidate.served_name}
    assert not any(replica.refused for replica in Replica.objects.all())


def test_a_rank_above_the_clusters_is_never_sent_and_told_at_once(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    adapter: Adapter,
    make_version: Callable[..., AdapterVersion],
) -> None:
    wide = make_version(adapter, seed=7337, rank=128)
    type(served.cluster).objects.update(max_lora_rank=64)
    valkey().xadd(WANTS, {WANTED_VERSION: wide.served_name})
    reconcile()
    assert names(engines[0]) == {served.version.served_name}
    assert not any(replica.refused for replica in Replica.objects.all())
    refusal = published().versions[wide.served_name].refusal
    assert refusal is not None
    assert "rank 128" in refusal
    assert "at most 64" in refusal
    assert published().versions[served.version.served_name].refusal is None


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("LoRA rank 128 is greater than max_lora_rank 64.", "max_lora_rank"),
        ("/srv/served/ab holds 0123, not 4567: its files were changed.", "Restore the stored files"),
        ("The probe of dora.v1 gave no finite result.", "Mend what the reason names"),
    ],
)
def test_the_alarm_says_what_helps(reason: str, remedy: str) -> None:
    assert remedy in remedy_of(reason)


def test_a_store_that_is_away_refuses_nothing(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    adapter: Adapter,
    make_version: Callable[..., AdapterVersion],
    alice: User,
    settings: Any,
    s3_keys: None,
) -> None:
    reconcile()
    candidate = make_version(adapter, seed=7334)
    Rollout.create(alias=served, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor())
    store = settings.ARTIFACT_STORE
    settings.ARTIFACT_STORE, settings.S3_ENDPOINT_URL = "s3://hub/hub", closed_url()
    engines[0][0].adapters.clear()
    reconcile()
    stable = served.version.served_name
    assert set(published().versions[stable].replicas) == {server.url for _, server in engines}, "from its local copy"
    assert not any(replica.refused for replica in Replica.objects.all())
    settings.ARTIFACT_STORE, settings.S3_ENDPOINT_URL = store, None
    reconcile()
    assert names(engines[0]) == names(engines[1]) == {stable, candidate.served_name}


def test_a_bucket_that_hangs_holds_up_no_version_that_is_here(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    candidate: AdapterVersion,
    alice: User,
    settings: Any,
    s3_keys: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A round once asked it for one version after another, for three minutes each, before it loaded any."""
    monkeypatch.setattr(served_folders, "COPY_S", 1.0)
    reconcile()
    stable = served.version.served_name
    Rollout.create(alias=served, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor())
    engines[0][0].adapters.clear()
    store, place = settings.ARTIFACT_STORE, settings.SERVED_DIR / candidate.digest
    # Another test of this process may have copied the same files.
    shutil.rmtree(place, ignore_errors=True)
    with trickling() as bucket:
        settings.ARTIFACT_STORE, settings.S3_ENDPOINT_URL = "s3://hub/hub", bucket.url
        began = time.monotonic()
        reconcile()
        assert time.monotonic() - began < 10
        assert names(engines[0]) == {stable}
        assert not place.exists()
    settings.ARTIFACT_STORE, settings.S3_ENDPOINT_URL = store, None
    wait_until(lambda: reconcile() or candidate.served_name in names(engines[0]), what="the candidate")


def test_a_move_to_what_no_replica_takes_is_taken_back(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    adapter: Adapter,
    make_version: Callable[..., AdapterVersion],
    alice: User,
) -> None:
    reconcile()
    old, changed = served.version, make_version(adapter, seed=7335)
    damage(changed)
    served.move(changed, expected=old, reason="newer", by=alice.as_actor())
    reconcile()
    served.refresh_from_db()
    assert served.version == old
    assert published().aliases["eu/compliance"].stable == old.served_name
    assert set(published().versions[old.served_name].replicas) == {server.url for _, server in engines}
    event = AuditEvent.objects.filter(tag="alias:moved").latest("id")
    assert event.actor_name == "system:reconciler"
    assert "were changed" in event.reason
    reconcile()
    assert AuditEvent.objects.filter(tag="alias:moved").count() == 2, "once"


def test_a_way_back_is_not_taken_back(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    adapter: Adapter,
    make_version: Callable[..., AdapterVersion],
    alice: User,
) -> None:
    """Whoever went back to what was served before meant to leave the other, also when that is gone."""
    first, second = make_version(adapter, seed=7336), make_version(adapter, seed=7337)
    for old, new in ((served.version, first), (first, second), (second, first)):
        served.move(new, expected=old, reason="there and back", by=alice.as_actor())
    damage(first)
    reconcile()
    served.refresh_from_db()
    assert served.version == first
