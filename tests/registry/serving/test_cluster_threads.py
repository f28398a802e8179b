"""Clusters are reconciled side by side: a replica that hangs holds up neither other clusters nor its neighbours."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Alias, Cluster, Replica
from registry.serving import cluster_threads, reconciler, replica_calls
from registry.serving.cluster_threads import PATIENCE_S, ClusterThreads
from registry.serving.reconciler import reconcile_alone
from registry.serving.valkey import valkey
from serving_client.protocol import WANTS
from tests.builders.fleet import OnDisk, names, published
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server
from tests.fakes.trickle import trickling
from tests.waiting import wait_until


class Hanging:
    """An engine that answers no call of a path until it is released."""

    def __init__(self, path: str) -> None:
        self.path, self.released, self.asked = path, threading.Event(), threading.Event()

    def around(self, app: ASGIApp) -> ASGIApp:
        async def delayed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] == self.path:
                self.asked.set()
                while not self.released.is_set():
                    await asyncio.sleep(0.02)
            await app(scope, receive, send)

        return delayed


@pytest.fixture
def hanging(served: Alias, alice: User) -> Iterator[Hanging]:
    """A second cluster, of the same project, whose only replica hangs."""
    hang = Hanging("/v1/models")
    other = Cluster.create(project=served.project, slug="a", base_model=served.cluster.base_model, by=alice.as_actor())
    with Server(hang.around(FakeEngine().app())) as server:
        other.add_replica(url=server.url, by=alice.as_actor())
        yield hang
        hang.released.set()


@pytest.fixture
def clusters() -> Iterator[ClusterThreads]:
    threads = ClusterThreads()
    yield threads
    threads.close()


@pytest.mark.slow
def test_a_replica_that_hangs_in_one_cluster_holds_up_no_other(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    candidate: AdapterVersion,
    hanging: Hanging,
    clusters: ClusterThreads,
    alice: User,
) -> None:
    clusters.reconcile()
    wait_until(lambda: len(names(engines[0])) == 1, what="the quiet cluster's version")
    served.move(candidate, expected=served.version, reason="newer", by=alice.as_actor())
    began = time.monotonic()
    wait_until(lambda: clusters.reconcile() or candidate.served_name in names(engines[0]), what="the new version")
    assert time.monotonic() - began < 3 * PATIENCE_S, "a hung replica is waited for 5 s"
    assert hanging.asked.is_set()
    assert not hanging.released.is_set()
    served.cluster.refresh_from_db()
    assert served.cluster.reconciled_at
    assert Cluster.objects.get(slug="a").reconciled_at is None
    assert not reconcile_alone(Cluster.objects.get(slug="a")), "its round goes on in its thread"


def test_a_cluster_is_healed_when_its_replica_answers_again(hanging: Hanging, clusters: ClusterThreads) -> None:
    clusters.reconcile()
    hanging.released.set()
    wait_until(lambda: clusters.reconcile() or Cluster.objects.get(slug="a").reconciled_at, what="a whole round")
    assert Replica.objects.get(cluster__slug="a").is_healthy


def test_a_replica_that_hangs_on_a_load_keeps_no_other_out_of_the_table(
    served: Alias, engines: list[tuple[FakeEngine, Server]], monkeypatch: pytest.MonkeyPatch, alice: User
) -> None:
    monkeypatch.setattr(reconciler, "PUBLISH_EVERY_S", 0)
    hang = Hanging("/v1/load_lora_adapter")
    slow = FakeEngine()
    slow.folders = OnDisk()
    name = served.version.served_name
    with Server(hang.around(slow.app())) as server:
        served.cluster.add_replica(url=server.url, by=alice.as_actor())
        threads = ClusterThreads()
        threads.reconcile()
        wait_until(lambda: len(published().versions[name].replicas) == 2, what="the table with two replicas")
        assert hang.asked.is_set()
        hang.released.set()
        threads.close()
    assert len(published().versions[name].replicas) == 3


def test_no_load_begins_after_the_end_of_a_round(
    served: Alias, engines: list[tuple[FakeEngine, Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "ROUND_S", -1)
    assert reconcile_alone(served.cluster)
    assert names(engines[0]) == set()
    monkeypatch.undo()
    assert reconcile_alone(served.cluster)
    assert names(engines[0]) == {served.version.served_name}


def test_a_replica_that_answers_a_byte_at_a_time_does_not_hold_its_cluster(
    served: Alias, engines: list[tuple[FakeEngine, Server]], monkeypatch: pytest.MonkeyPatch, alice: User
) -> None:
    """It once ended no round of its cluster: each byte came within the time of its read."""
    monkeypatch.setattr(replica_calls, "INSPECT_TIMEOUT_S", 1.0)
    with trickling() as slow:
        served.cluster.add_replica(url=slow.url, by=alice.as_actor())
        assert reconcile_alone(served.cluster)
    assert not Replica.objects.get(url=slow.url).is_healthy
    assert names(engines[0]) == {served.version.served_name}


def test_a_replica_that_never_answers_an_unload_holds_up_no_load(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    candidate: AdapterVersion,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    alice: User,
) -> None:
    """Its cluster once waited a minute for each version that it should unload."""
    hang, slow = Hanging("/v1/unload_lora_adapter"), FakeEngine()
    slow.folders = OnDisk()
    monkeypatch.setattr(replica_calls, "UNLOAD_TIMEOUT_S", 0.5)
    settings.ROLLBACK_WINDOW = timedelta(0)
    old = served.version.served_name
    with Server(hang.around(slow.app())) as server:
        served.cluster.add_replica(url=server.url, by=alice.as_actor())
        reconcile_alone(served.cluster)
        served.move(candidate, expected=served.version, reason="newer", by=alice.as_actor())
        reconcile_alone(served.cluster)
        hang.released.set()
    assert hang.asked.is_set()
    assert names(engines[0]) == {candidate.served_name}
    assert set(published().versions[candidate.served_name].replicas) == {server.url, *(s.url for _, s in engines)}
    assert published().versions[old].replicas == ()


def test_versions_that_requests_wait_for_get_slots_one_round_after_the_other(
    served: Alias, engines: list[tuple[FakeEngine, Server]], make_version: Callable[..., AdapterVersion]
) -> None:
    Cluster.objects.update(max_loras=1)
    cold = [make_version(served.version.adapter, seed=70 + number).served_name for number in range(3)]
    with valkey() as client:
        for name in cold:
            client.xadd(WANTS, {"version": name})
    threads = ClusterThreads()
    threads.reconcile()
    threads.close()
    loads = AuditEvent.objects.filter(tag="replica:version_loaded").order_by("at")
    assert list(dict.fromkeys(event.after["version"] for event in loads)) == cold
    assert names(engines[0]) == names(engines[1]) == {cold[-1]}


def test_a_version_that_cannot_be_loaded_makes_no_endless_rounds(
    served: Alias, engines: list[tuple[FakeEngine, Server]], candidate: AdapterVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[Cluster] = []
    monkeypatch.setattr(cluster_threads, "reconcile_alone", lambda cluster: rounds.append(cluster) or True)
    with valkey() as client:
        client.xadd(WANTS, {"version": candidate.served_name})
    cluster_threads.reconcile_while_awaited(served.cluster)
    assert len(rounds) == 2
