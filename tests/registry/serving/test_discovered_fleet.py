"""A day of a fleet: scale out, a promotion, a lost node, a rolling restart. Only ready holders are routed to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias
from registry.replica_sources import endpoint_slices
from registry.serving import discovery
from registry.serving.discovery import Discovery, note_resident
from registry.serving.reconciler import reconcile
from registry.serving.valkey import valkey as connect
from registry.tasks import discover
from serving_client.protocol import DISCOVERING, ROUTING_TABLE, RoutingTable
from tests.builders.fleet import OnDisk, published
from tests.fakes.engine import FakeEngine
from tests.fakes.kubernetes import TOKEN, FakeKubernetes, endpoint
from tests.fakes.server import Server
from tests.waiting import wait_until

SOURCE = "kubernetes://ml/adapterhub.io/fleet=llama?port=http"


class Witness(threading.Thread):
    """A reader of the published table, as a router is one, that compares it with the pods all the time."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(name="witness", daemon=True)
        self.fleet, self.ends = fleet, threading.Event()
        self.generations: set[int] = set()
        self.faults: list[str] = []

    def run(self) -> None:
        with connect() as valkey:
            while not self.ends.wait(0.002):
                text = valkey.get(ROUTING_TABLE)
                faults = self.fleet.faults(RoutingTable.from_json(text)) if text else []
                # Compared with a table that was replaced meanwhile they would say nothing.
                if text and valkey.get(ROUTING_TABLE) == text:
                    self.generations.add(RoutingTable.from_json(text).generation)
                    self.faults += faults

    def require_no_fault(self) -> None:
        assert self.is_alive()
        assert self.faults == []

    def close(self) -> None:
        self.ends.set()
        self.join()


class Fleet:
    """Pods of vLLM on loopback, each in a slice of its own, and a control plane that follows them."""

    def __init__(self, kubernetes: FakeKubernetes, alias: Alias) -> None:
        self.kubernetes, self.alias, self.discovery = kubernetes, alias, Discovery()
        self.pods: dict[str, tuple[FakeEngine, Server]] = {}
        self.going: set[str] = set()
        # Of those, the ones that the control plane has heard of or found silent.
        self.known: set[str] = set()
        self.witness = Witness(self)

    def start(self, name: str) -> None:
        engine = FakeEngine()
        engine.folders = OnDisk()
        server = Server(engine.app())
        server.__enter__()
        self.pods[name] = (engine, server)
        self.tell(name, ready=False)

    def tell(self, name: str, **conditions: bool) -> None:
        port = int(self.pods[name][1].url.rpartition(":")[2])
        self.kubernetes.put(name, endpoint("127.0.0.1", **conditions), port=port)

    def terminate(self, name: str) -> None:
        self.going.add(name)
        self.tell(name, terminating=True)

    def kill(self, name: str, *, is_told: bool = True) -> None:
        self.going.add(name)
        self.pods[name][1].__exit__()
        if is_told:
            self.kubernetes.delete(name)

    def follow(self) -> None:
        """Until discovery has heard of the latest version of the slices."""
        follower = next(iter(self.discovery._followers.values()), None)
        version = str(self.kubernetes.version)
        if follower is None:
            self.discovery.update()
            [follower] = self.discovery._followers.values()
        wait_until(lambda: follower._version == version, 5, "discovery has heard of it")
        self.discovery.update()
        self.check()

    def reconcile(self) -> None:
        reconcile()
        self.check()

    def round(self) -> None:
        self.follow()
        self.reconcile()

    def check(self) -> None:
        """The table names ready holders alone: now, and at each moment since the last check."""
        self.known |= self.going
        assert self.faults(published()) == []
        self.witness.require_no_fault()

    def faults(self, table: RoutingTable) -> list[str]:
        """Return the faults of a table as the pods are now."""
        return [
            f"{pod} {'is going' if name in engine.adapters else f'does not hold {name}'}"
            for name, route in table.versions.items()
            for pod, (engine, server) in list(self.pods.items())
            if server.url in route.replicas and (name not in engine.adapters or pod in self.known)
        ]

    def named(self) -> set[str]:
        """The pods that are replicas of the cluster."""
        urls = set(self.alias.cluster.replicas.values_list("url", flat=True))
        return {pod for pod, (_, server) in self.pods.items() if server.url in urls}

    def message(self) -> str:
        """Return the cluster's message about its source."""
        self.alias.cluster.refresh_from_db()
        return self.alias.cluster.discovery_message

    def routed(self) -> set[str]:
        """The pods to which requests for what the alias serves go."""
        table = published()
        replicas = table.versions[table.aliases["eu/compliance"].stable].replicas
        return {pod for pod, (_, server) in self.pods.items() if server.url in replicas}


@pytest.fixture
def fleet(
    fresh_database: str, alias: Alias, alice: User, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Fleet]:
    monkeypatch.setattr(endpoint_slices, "FIRST_PAUSE_S", 0.01)
    (tmp_path / "token").write_text(TOKEN)
    kubernetes = FakeKubernetes()
    settings.KUBERNETES_URL, settings.KUBERNETES_ACCOUNT = kubernetes.url, str(tmp_path)
    alias.cluster.change(discovery=SOURCE, reason="on Kubernetes", by=alice.as_actor())
    alias.refresh_from_db()
    fleet = Fleet(kubernetes, alias)
    with ExitStack() as stack:
        stack.callback(kubernetes.close)
        stack.callback(fleet.discovery.close)
        fleet.witness.start()
        stack.callback(fleet.witness.close)
        yield fleet
        for name in fleet.pods.keys() - fleet.going:
            fleet.kill(name)
        for name in fleet.going:
            fleet.pods[name][1].__exit__()


@pytest.mark.slow
def test_the_table_names_only_ready_holders_at_each_moment(
    fleet: Fleet, candidate: AdapterVersion, alice: User
) -> None:
    fleet.start("one")
    fleet.round()
    assert fleet.routed() == {"one"}

    # Scale out: the new pod gets no request before it is loaded.
    fleet.start("two")
    fleet.follow()
    assert fleet.routed() == {"one"}
    fleet.round()
    assert fleet.routed() == {"one", "two"}

    # A version is promoted while a third pod comes.
    fleet.start("three")
    fleet.alias.move(candidate, expected=fleet.alias.version, reason="promoted", by=alice.as_actor())
    fleet.check()
    fleet.round()
    assert fleet.routed() == {"one", "two", "three"}
    assert published().aliases["eu/compliance"].stable == candidate.served_name

    # A node is lost: first its pod does not answer, later Kubernetes says so. The watch is lost meanwhile.
    fleet.kill("two", is_told=False)
    fleet.reconcile()
    assert fleet.routed() == {"one", "three"}
    fleet.kubernetes.break_watches()
    fleet.kubernetes.delete("two")
    fleet.round()
    fleet.round()
    assert {replica.url for replica in fleet.alias.cluster.replicas.all()} == {
        fleet.pods[name][1].url for name in ("one", "three")
    }

    # A rolling restart: the new pod comes under another address before the old one goes.
    fleet.start("four")
    fleet.round()
    fleet.terminate("one")
    fleet.follow()
    assert fleet.routed() == {"three", "four"}
    fleet.kill("one")
    fleet.round()
    fleet.round()
    assert fleet.routed() == {"three", "four"}

    # The API forgets the versions: what there is is listed anew, and nothing changes for who is there.
    fleet.kubernetes.forget()
    fleet.kubernetes.break_watches()
    fleet.round()
    assert fleet.routed() == {"three", "four"}

    # The API is away: nothing changes, and the cluster says why.
    fleet.kubernetes.status = 503
    fleet.kubernetes.break_watches()

    def message() -> str:
        fleet.discovery.update()
        fleet.alias.cluster.refresh_from_db()
        return fleet.alias.cluster.discovery_message

    wait_until(lambda: "503" in message(), 5, "the cluster says that Kubernetes does not answer")
    fleet.check()
    assert fleet.routed() == {"three", "four"}
    assert len(fleet.witness.generations) >= 8


def test_the_witness_sees_a_route_to_a_pod_that_does_not_hold_the_version(fleet: Fleet) -> None:
    fleet.start("one")
    fleet.round()
    [engine, _] = fleet.pods["one"]
    engine.adapters.clear()
    wait_until(lambda: bool(fleet.witness.faults), 5, "the witness sees it")
    assert "one does not hold" in fleet.witness.faults[0]


def test_one_round_by_hand_finds_who_is_there(fleet: Fleet) -> None:
    fleet.start("one")
    call_command("discover", "--once")
    assert fleet.named() == {"one"}


def test_a_task_of_beat_discovers_unless_a_process_of_its_own_does(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make run` has beat in its first worker, and no process for discovery."""
    assert settings.CELERY_BEAT_SCHEDULE["discovery"]["task"] == discover.name
    monkeypatch.setattr(discovery, "single", lambda: Discovery(follows=False))
    fleet.start("one")
    note_resident()
    discover()
    assert not fleet.alias.cluster.replicas.exists()

    with connect() as valkey:
        valkey.delete(DISCOVERING)
    discover()
    assert fleet.named() == {"one"}

    # A pod under way, whose slices the API forgets while they are listed, is found the next time.
    fleet.start("two")
    fleet.kubernetes.status = 410
    discover()
    assert "read again" in fleet.message()
    fleet.kubernetes.status = 200
    discover()
    assert (fleet.named(), fleet.message()) == ({"one", "two"}, "")


def test_of_two_that_discover_one_waits_for_the_next_round(fleet: Fleet) -> None:
    fleet.start("one")
    other = connections.create_connection("default")
    with closing(other), other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(hashtext('adapterhub.discovery'), 0)")
        call_command("discover", "--once")
        assert not fleet.alias.cluster.replicas.exists()
    call_command("discover", "--once")
    assert fleet.named() == {"one"}
