"""Replicas and clusters come and go: changed, drained and deleted, with what that would cut off."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from socket import EAI_NONAME, gaierror, getaddrinfo
from typing import Any

import pytest
from django.test import Client as Http

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Conflict, Invalid
from registry.models import AdapterVersion, Alias, Cluster, Replica
from registry.serving.open_alarms import open_alarms
from serving_client.engine_hosts import normalised
from tests.builders.rest import client, problem


@pytest.fixture
def holder(alias: Alias, alice: User) -> Replica:
    """The only replica of the alias' cluster, which holds what the alias serves."""
    replica: Replica = alias.cluster.add_replica(url="http://127.0.0.1:1", by=alice.as_actor())
    replica.saw({}, "0.32.0")
    replica.loaded = {alias.version.served_name: "/served/1"}
    replica.keep("loaded")
    return replica


def second(cluster: Cluster, alice: User, loaded: dict[str, str]) -> Replica:
    replica: Replica = cluster.add_replica(url="http://127.0.0.1:2", by=alice.as_actor())
    replica.saw({}, "0.32.0")
    replica.loaded = loaded
    replica.keep("loaded")
    return replica


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("HTTP://Engine.Example:80/", "http://engine.example"),
        ("https://engine.example.:443", "https://engine.example"),
        ("http://[0:0:0:0:0:0:0:1]:8100/", "http://[::1]:8100"),
        ("http://10.0.0.1:8000/v", "http://10.0.0.1:8000/v"),
    ],
)
def test_an_address_has_one_spelling(spelling: str, expected: str) -> None:
    assert normalised(spelling) == expected


@pytest.mark.parametrize("verb", ["drain", "remove"])
def test_the_only_holder_of_a_live_version_goes_only_when_that_is_confirmed(
    holder: Replica, alias: Alias, alice: User, verb: str
) -> None:
    with pytest.raises(Conflict, match=f"alone holds {alias.version.served_name}") as refused:
        getattr(holder, verb)(reason="old", by=alice.as_actor())
    assert refused.value.code == "cuts_off"
    second(alias.cluster, alice, {})
    with pytest.raises(Conflict):
        getattr(holder, verb)(reason="old", by=alice.as_actor())
    getattr(holder, verb)(reason="old", by=alice.as_actor(), confirm=True)
    event = AuditEvent.objects.filter(tag__startswith="replica:").latest("pk")
    assert (event.reason, event.after["cuts_off"]) == ("old", [alias.version.served_name])


def test_a_replica_whose_versions_another_holds_goes_without_a_question(
    holder: Replica, alias: Alias, alice: User
) -> None:
    other = second(alias.cluster, alice, dict(holder.loaded))
    holder.drain(reason="maintenance", by=alice.as_actor())
    assert holder.draining_since
    with pytest.raises(Conflict):
        other.drain(reason="both", by=alice.as_actor())
    holder.resume(reason="done", by=alice.as_actor())
    assert holder.draining_since is None
    other.remove(reason="gone", by=alice.as_actor())
    assert list(alias.cluster.replicas.all()) == [holder]
    assert [event.tag for event in AuditEvent.objects.filter(tag__startswith="replica:").order_by("pk")][2:] == [
        "replica:drained",
        "replica:resumed",
        "replica:deleted",
    ]


def test_a_dead_replica_stops_alarming_when_it_is_drained_or_deleted(cluster: Cluster, alice: User) -> None:
    replica = cluster.add_replica(url="http://127.0.0.1:1", by=alice.as_actor())
    replica.missed("It does not answer.")
    assert [alarm.kind for alarm in open_alarms(cluster.replicas.all())] == ["replica_unreachable"]
    replica.drain(reason="broken", by=alice.as_actor())
    assert open_alarms(cluster.replicas.all()) == []
    replica.remove(reason="broken", by=alice.as_actor())
    assert not cluster.replicas.exists()


def test_an_address_is_corrected_and_refused_when_it_is_taken_or_forbidden(cluster: Cluster, alice: User) -> None:
    first, other = (cluster.add_replica(url=f"http://127.0.0.1:{port}", by=alice.as_actor()) for port in (1, 2))
    first.change_address("HTTP://127.0.0.1:3/", reason="typing error", by=alice.as_actor())
    assert (first.url, first.seen_at) == ("http://127.0.0.1:3", None)
    with pytest.raises(Conflict):
        first.change_address(other.url, reason="x", by=alice.as_actor())
    with pytest.raises(Conflict):
        first.change_address("HTTP://127.0.0.1:02/", reason="another spelling", by=alice.as_actor())
    with pytest.raises(Invalid, match="ADAPTERHUB_ENGINE_HOSTS"):
        first.change_address("http://169.254.169.254:80", reason="x", by=alice.as_actor())
    first.change_address("http://127.0.0.1:3/", reason="the same engine", by=alice.as_actor())


@pytest.mark.parametrize(
    "spelling",
    [
        "http://127.0.0.1/",
        "HTTP://127.0.0.1:080",
        "http://LOCALHOST.:80",
        "http://[::1]",
        "http://[0:0:0:0:0:0:0:1]:80/",
        "http://[::ffff:127.0.0.1]",
        "http://0.0.0.0:80",
        "http://127.0.0.2",
    ],
)
def test_one_engine_under_another_spelling_is_refused_in_every_cluster(
    cluster: Cluster, alice: User, settings: Any, spelling: str
) -> None:
    settings.ENGINE_HOSTS = ["localhost", "127.0.0.0/8", "0.0.0.0/32", "::/0"]
    cluster.add_replica(url="http://127.0.0.1:80", by=alice.as_actor())
    other = Cluster.create(project=cluster.project, slug="b", base_model=cluster.base_model, by=alice.as_actor())
    for shared in (cluster, other):
        with pytest.raises(Conflict) as refused:
            shared.add_replica(url=spelling, by=alice.as_actor())
        assert (refused.value.field, refused.value.code) == ("url", "replica_exists")


def test_a_host_that_does_not_resolve_is_refused(
    cluster: Cluster, alice: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.ENGINE_HOSTS = ["127.0.0.1", "gpu.example"]
    monkeypatch.setattr("socket.getaddrinfo", lookup(getaddrinfo))
    replica = cluster.add_replica(url="http://127.0.0.1:1", by=alice.as_actor())
    for verb in (cluster.add_replica, partial(replica.change_address, reason="x")):
        with pytest.raises(Invalid, match="does not resolve here") as refused:
            verb(url="http://gpu.example:8000", by=alice.as_actor())
        assert (refused.value.field, refused.value.code) == ("url", "unresolved_address")
    assert Replica.objects.get().url == "http://127.0.0.1:1"


def lookup(known: Callable[..., Any]) -> Callable[..., Any]:
    """Return a look-up that knows numbers alone."""

    def looked_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host == "gpu.example":
            raise gaierror(EAI_NONAME, "Name or service not known")
        return known(host, *arguments, **options)

    return looked_up


def test_what_the_loop_writes_after_a_change_of_address_or_a_deletion_is_dropped(cluster: Cluster, alice: User) -> None:
    stale = cluster.add_replica(url="http://127.0.0.1:1", by=alice.as_actor())
    Replica.objects.get().change_address("http://127.0.0.1:2", reason="x", by=alice.as_actor())
    stale.loaded = {"dora.v1-000000000000": "/served/1"}
    stale.keep("loaded")
    assert Replica.objects.get().loaded == {}
    Replica.objects.get().remove(reason="x", by=alice.as_actor())
    stale.saw({}, "0.32.0")
    assert not Replica.objects.exists()


def test_a_cluster_changes_and_goes_when_nothing_is_on_it(
    alias: Alias, cluster: Cluster, project: Project, alice: User, make_version: Callable[..., AdapterVersion]
) -> None:
    by = alice.as_actor()
    cluster.change(max_loras=4, engine_key="sk-1", reason="restarted", by=by)
    assert (cluster.max_loras, cluster.engine_key) == (4, "sk-1")
    event = AuditEvent.objects.filter(tag="cluster:changed").latest("pk")
    assert (event.before, event.after) == (
        {"max_loras": 8, "has_engine_key": False},
        {"max_loras": 4, "has_engine_key": True},
    )
    assert b"sk-1" not in bytes(Cluster.objects.get(pk=cluster.pk).sealed_key)
    with pytest.raises(Conflict, match=alias.version.served_name):
        cluster.change(max_lora_rank=1, reason="x", by=by)
    with pytest.raises(Conflict, match="1 aliases"):
        cluster.remove(reason="x", by=by)
    empty = Cluster.create(project=project, slug="empty", base_model=cluster.base_model, by=by)
    empty.grant("far", by=by)
    replica = empty.add_replica(url="http://127.0.0.1:5", by=by)
    with pytest.raises(Conflict, match="Delete them first"):
        empty.remove(reason="x", by=by)
    replica.remove(reason="x", by=by)
    empty.remove(reason="unused", by=by)
    assert not Cluster.objects.filter(slug="empty").exists()
    assert AuditEvent.objects.filter(tag="cluster:deleted", reason="unused").exists()


def test_a_cluster_is_drained_as_a_whole(holder: Replica, alias: Alias, alice: User) -> None:
    with pytest.raises(Conflict, match="alone holds"):
        alias.cluster.drain(reason="x", by=alice.as_actor())
    alias.cluster.drain(reason="x", by=alice.as_actor(), confirm=True)
    assert not alias.cluster.replicas.all().usable().exists()


def test_rest_changes_drains_and_deletes(holder: Replica, alias: Alias, ci: str) -> None:
    http: Http = client(ci)
    path = f"/api/v1/replicas/{holder.pk}/"
    problem(http.post(f"{path}drain/", {"reason": "x"}, content_type="application/json"), 409, "cuts_off")
    drained = http.post(f"{path}drain/", {"reason": "x", "confirm": True}, content_type="application/json")
    assert drained.json()["draining_since"]
    resumed = http.post(f"{path}resume/", {"reason": "x"}, content_type="application/json")
    assert resumed.json()["draining_since"] is None
    problem(http.delete(path), 422, "invalid")
    problem(http.delete(f"{path}?reason=x&force=1"), 422, "unknown_field")
    problem(http.delete(f"{path}?reason=x"), 409, "cuts_off")
    assert http.delete(f"{path}?reason=x&confirm=true").status_code == 204
    cluster = f"/api/v1/clusters/{alias.cluster.slug}/"
    changed = http.patch(cluster, {"engine_key": "sk-2", "reason": "x"}, content_type="application/json").json()
    assert (changed["has_engine_key"], "sk-2" in str(changed)) == (True, False)
    problem(http.patch(cluster, {"reason": "x"}, content_type="application/json"), 422, "invalid")
    problem(http.delete(f"{cluster}?reason=x"), 409, "cluster_in_use")
