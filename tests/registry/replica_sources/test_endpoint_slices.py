"""EndpointSlices are listed once and followed, through lost connections and forgotten versions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.replica_sources import endpoint_slices
from registry.replica_sources.address import parse
from registry.replica_sources.dns_records import LookupFailed
from registry.replica_sources.endpoint_slices import Kubernetes, SliceFollower, endpoints_of
from tests.fakes.kubernetes import TOKEN, FakeKubernetes, endpoint
from tests.waiting import wait_until

SOURCE = parse("kubernetes://ml/adapterhub.io/fleet=llama?port=http")


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    cluster = FakeKubernetes()
    yield cluster
    cluster.close()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text(TOKEN + "\n")
    return tmp_path


@pytest.fixture
def follower(cluster: FakeKubernetes, account: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SliceFollower]:
    monkeypatch.setattr(endpoint_slices, "FIRST_PAUSE_S", 0.01)
    cluster.put("a", endpoint("10.0.0.1"))
    follower = SliceFollower(Kubernetes(cluster.url, account), SOURCE, threading.Event().set)
    wait_until(lambda: cluster.watches() == 1, 5, "the slices are watched")
    yield follower
    follower.close()


def urls(*numbers: int) -> dict[str, bool]:
    return {f"http://10.0.0.{number}:8000": False for number in numbers}


def until(follower: SliceFollower, wanted: dict[str, bool]) -> None:
    def as_wanted() -> bool:
        try:
            return follower.endpoints() == wanted
        except LookupFailed:
            return False

    wait_until(as_wanted, 5, f"the endpoints are {wanted}")


def lists(cluster: FakeKubernetes) -> int:
    return len([query for query in cluster.requests if "watch" not in query])


def test_pods_come_and_go(cluster: FakeKubernetes, follower: SliceFollower) -> None:
    until(follower, urls(1))
    # Not ready: the control plane has to load it first.
    cluster.put("a", endpoint("10.0.0.1"), endpoint("10.0.0.2", ready=False))
    until(follower, urls(1, 2))
    cluster.put("b", endpoint("10.0.0.3"))
    cluster.put("other", endpoint("10.0.0.9"), fleet="qwen", port=7000)
    cluster.put("a", endpoint("10.0.0.1", terminating=True), endpoint("10.0.0.2"))
    until(follower, urls(2, 3) | {"http://10.0.0.1:8000": True})
    cluster.delete("b")
    cluster.put("a", endpoint("10.0.0.2"))
    until(follower, urls(2))
    assert lists(cluster) == 1


def test_a_lost_connection_goes_on_where_it_was(cluster: FakeKubernetes, follower: SliceFollower) -> None:
    until(follower, urls(1))
    cluster.status = 503
    cluster.break_watches()
    cluster.put("b", endpoint("10.0.0.2"))

    def is_unknown() -> bool:
        try:
            follower.endpoints()
        except LookupFailed as error:
            return "503" in str(error)
        return False

    wait_until(is_unknown, 5, "what replicas there are is not known")
    cluster.status = 200
    until(follower, urls(1, 2))
    assert lists(cluster) == 1
    resumed = [query["resourceVersion"] for query in cluster.requests if "watch" in query]
    assert resumed[-1] == "101"


@pytest.mark.parametrize("is_event", [True, False])
def test_a_version_that_is_forgotten_is_listed_anew(
    cluster: FakeKubernetes, follower: SliceFollower, is_event: bool
) -> None:
    until(follower, urls(1))
    cluster.status = 503
    cluster.break_watches()
    cluster.put("b", endpoint("10.0.0.2"))
    cluster.delete("a")
    cluster.forget()
    if not is_event:
        cluster.status = 410
        seen = len(cluster.requests)
        wait_until(lambda: len(cluster.requests) > seen + 2, 5, "the watch was refused")
    cluster.status = 200
    until(follower, urls(2))
    assert lists(cluster) >= 2


def test_a_long_list_is_read_page_by_page(cluster: FakeKubernetes, account: Path) -> None:
    cluster.page = 2
    for number in range(5):
        cluster.put(f"s{number}", endpoint(f"10.0.0.{number}"))
    slices, version = Kubernetes(cluster.url, account).list(SOURCE)
    assert endpoints_of(slices.values(), "http") == urls(0, 1, 2, 3, 4)
    assert version == "105"


def test_a_refusal_names_its_reason(cluster: FakeKubernetes, account: Path) -> None:
    with pytest.raises(LookupFailed, match=r"refuses the EndpointSlices of prod: 403 .*forbidden"):
        Kubernetes(cluster.url, account).list(parse("kubernetes://prod/app=vllm"))
    (account / "token").write_text("expired")
    with pytest.raises(LookupFailed, match="401"):
        Kubernetes(cluster.url, account).list(SOURCE)
    with pytest.raises(LookupFailed, match="does not answer"):
        Kubernetes("http://127.0.0.1:9", account).list(SOURCE)


def test_an_endpoint_in_two_slices_leaves_when_both_say_so() -> None:
    port = [{"name": "http", "port": 8000}]
    going = {"ports": port, "endpoints": [endpoint("10.0.0.1", terminating=True)]}
    staying = {"ports": port, "endpoints": [endpoint("10.0.0.1")]}
    assert endpoints_of([going, staying], "http") == urls(1)
    assert endpoints_of([staying, going], "") == urls(1)
    assert endpoints_of([going, going], "") == {"http://10.0.0.1:8000": True}
    assert endpoints_of([{"ports": port, "endpoints": None}, {"addressType": "FQDN", "ports": port}], "") == {}
    assert endpoints_of([staying], "metrics") == {}
