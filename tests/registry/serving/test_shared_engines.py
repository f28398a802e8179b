"""Versions that another hand loaded are reported and left alone; a marker tells one engine under two names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.conf import settings as django_settings
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Alias, Cluster, Replica
from registry.models.fleet.replica import MARKER
from registry.serving.open_alarms import open_alarms
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import routing_table
from registry.serving.same_engine import TWIN
from serving_client.engine_keys import kept_secret, opened
from tests.builders.fleet import OnDisk, names
from tests.fakes.engine import FakeEngine, error
from tests.fakes.server import Server


@pytest.fixture
def second_name(served: Alias, engines: list[tuple[FakeEngine, Server]]) -> Iterator[str]:
    """Another address of the first engine, which no name server shows to be the same."""
    with Server(engines[0][0].app()) as server:
        yield server.url


@pytest.fixture
def other_alias(served: Alias, second_name: str, candidate: AdapterVersion, alice: User) -> Alias:
    """A second cluster wants another version on the same engine."""
    by = alice.as_actor()
    cluster = Cluster.create(project=served.project, slug="twin", base_model=served.cluster.base_model, by=by)
    cluster.add_replica(url=second_name, by=by)
    return Alias.create(project=served.project, name="other", cluster=cluster, version=candidate, policy={}, by=by)


@pytest.mark.slow
def test_one_engine_under_two_names_is_told_and_no_war_begins(
    served: Alias, engines: list[tuple[FakeEngine, Server]], other_alias: Alias, second_name: str
) -> None:
    for _ in range(6):
        reconcile()
    twin = Replica.objects.get(url=second_name)
    assert (twin.is_healthy, twin.message, twin.loaded) == (False, TWIN, {})
    assert names(engines[0]) == {served.version.served_name}
    events = AuditEvent.objects.filter(tag__in=["replica:version_loaded", "replica:version_unloaded"])
    assert events.count() == 2, "each replica of the first cluster loaded its version once"
    assert not any(name.startswith(MARKER) for name in names(engines[0]))


def test_the_younger_name_serves_when_the_older_one_is_deleted(
    served: Alias, engines: list[tuple[FakeEngine, Server]], other_alias: Alias, second_name: str, alice: User
) -> None:
    reconcile()
    older = Replica.objects.get(url=engines[0][1].url)
    older.remove(reason="renamed", by=alice.as_actor())
    reconcile()
    assert Replica.objects.get(url=second_name).is_healthy
    assert other_alias.version.served_name in names(engines[0])


def test_what_another_hand_loaded_is_reported_and_takes_a_slot(
    served: Alias, engines: list[tuple[FakeEngine, Server]]
) -> None:
    engines[0][0].adapters |= {"theirs": "/elsewhere/1", "x" * 400: "/elsewhere/2"}
    reconcile()
    reconcile()
    assert "theirs" in names(engines[0])
    assert served.version.served_name in names(engines[0])
    replica = Replica.objects.get(url=engines[0][1].url)
    assert replica.foreign == ["theirs"]
    (alarm,) = open_alarms(Replica.objects.all())
    assert (alarm.kind, "theirs" in alarm.text) == ("foreign_versions", True)
    Cluster.objects.update(max_loras=1)
    engines[1][0].adapters["theirs"] = "/elsewhere/1"
    served.cluster.replicas.update(loaded={}, pushed=[])
    for engine, _ in engines:
        engine.adapters.pop(served.version.served_name, None)
    reconcile()
    assert names(engines[1]) == {"theirs"}, "there is no slot left"


def test_a_replica_that_was_deleted_and_added_again_keeps_what_it_holds(
    served: Alias, engines: list[tuple[FakeEngine, Server]], alice: User
) -> None:
    reconcile()
    old = Replica.objects.get(url=engines[0][1].url)
    old.remove(reason="by mistake", by=alice.as_actor())
    served.cluster.add_replica(url=engines[0][1].url, by=alice.as_actor())
    reconcile()
    again = Replica.objects.get(url=engines[0][1].url)
    assert (again.is_healthy, again.foreign) == (True, [])
    assert set(again.loaded) == {served.version.served_name}


def test_a_drained_replica_gets_no_traffic_and_unloads_what_it_holds(
    served: Alias, engines: list[tuple[FakeEngine, Server]], alice: User
) -> None:
    reconcile()
    drained = Replica.objects.get(url=engines[0][1].url)
    drained.drain(reason="maintenance", by=alice.as_actor())
    assert routing_table().versions[served.version.served_name].replicas == (engines[1][1].url,)
    reconcile()
    assert names(engines[0]) == set()
    drained.resume(reason="done", by=alice.as_actor())
    reconcile()
    assert names(engines[0]) == {served.version.served_name}
    assert len(routing_table().versions[served.version.served_name].replicas) == 2


def asking_for(key: str, app: ASGIApp) -> ASGIApp:
    """As `vllm --api-key` does."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "http" and headers.get(b"authorization") != f"Bearer {key}".encode():
            await error(401, "Unauthorized", "Unauthorized")(scope, receive, send)
        else:
            await app(scope, receive, send)

    return guarded


def test_an_engine_that_asks_for_a_key_gets_it_and_the_routers_get_it_sealed(
    fresh_database: str, alias: Alias, alice: User
) -> None:
    engine = FakeEngine()
    engine.folders = OnDisk()
    with Server(asking_for("sk-secret", engine.app())) as server:
        alias.cluster.add_replica(url=server.url, by=alice.as_actor())
        reconcile()
        assert engine.adapters == {}
        alias.cluster.change(engine_key="sk-secret", reason="started with --api-key", by=alice.as_actor())
        reconcile()
        assert set(engine.adapters) == {alias.version.served_name}
        table = routing_table()
    assert "sk-secret" not in table.to_json()
    secret = kept_secret(django_settings.ROUTER_SECRET_FILE)
    assert opened(table.engine_keys[server.url], secret) == "sk-secret"
    assert opened(table.engine_keys[server.url], "another") is None
