"""A day of a fleet: scale out, a promotion, a lost node, a rolling restart. Only ready holders are routed to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from adapterhub.accounts.models import User
from registry.models import AdapterVersion, Alias
from registry.replica_sources import endpoint_slices
from registry.serving.discovery import Discovery
from registry.serving.reconciler import reconcile
from tests.builders.fleet import OnDisk, published
from tests.fakes.engine import FakeEngine
from tests.fakes.kubernetes import TOKEN, FakeKubernetes, endpoint
from tests.fakes.server import Server
from tests.waiting import wait_until

SOURCE = "kubernetes://ml/adapterhub.io/fleet=llama?port=http"


class Fleet:
    """Pods of vLLM on loopback, each in a slice of its own, and a control plane that follows them."""

    def __init__(self, kubernetes: FakeKubernetes, alias: Alias) -> None:
        self.kubernetes, self.alias, self.discovery = kubernetes, alias, Discovery()
        self.pods: dict[str, tuple[FakeEngine, Server]] = {}
        self.going: set[str] = set()

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

    def round(self) -> None:
        self.follow()
        reconcile()
        self.check()

    def check(self) -> None:
        """The table names only pods that hold the version and are not going."""
        for name, route in published().versions.items():
            for pod, (engine, server) in self.pods.items():
                if server.url in route.replicas:
                    assert name in engine.adapters, f"{pod} does not hold {name}"
                    assert pod not in self.going, f"{pod} is going"

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
    reconcile()
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


def test_one_round_by_hand_finds_who_is_there(fleet: Fleet) -> None:
    fleet.start("one")
    call_command("discover", "--once")
    assert [replica.url for replica in fleet.alias.cluster.replicas.all()] == [fleet.pods["one"][1].url]
