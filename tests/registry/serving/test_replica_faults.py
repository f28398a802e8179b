"""Replicas that fail, restart, run full or accept by halves: what the control loop makes of each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.utils.timezone import now
from starlette.requests import Request
from starlette.responses import Response as Answer

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Alias, Replica, Response, Rollout
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import routing_table
from registry.serving.valkey import valkey
from serving_client.protocol import ROUTING_TABLE, WANTS, RoutingTable
from tests.fakes.engine import FakeEngine, error
from tests.fakes.server import Server


class Engine(FakeEngine):
    """Holds whatever folder exists; notes where the routers were told to find a version when it is unloaded."""

    def __init__(self) -> None:
        super().__init__()
        self.routed_when_unloaded: list[tuple[str, tuple[str, ...]]] = []
        self.meet: threading.Barrier | None = None
        self.loses_answers = False
        self.conceals = ""

    async def models(self, request: Request) -> Answer:
        adapters = self.adapters
        if self.conceals:
            self.adapters = {} if self.conceals == "nothing" else dict.fromkeys(adapters, "/elsewhere")
        answer = await super().models(request)
        self.adapters = adapters
        return answer

    async def load(self, request: Request) -> Answer:
        body = await request.json()
        self.folders = {body["lora_path"]: 4} if Path(body["lora_path"]).is_dir() else {}
        if self.meet:
            self.meet.wait(60)
        if self.conceals:
            self.adapters.pop(body["lora_name"], None)
        answer = await super().load(request)
        return error(503, "ServiceUnavailable", "lost on the way") if self.loses_answers else answer

    async def unload(self, request: Request) -> Answer:
        name = (await request.json())["lora_name"]
        self.routed_when_unloaded.append((name, routed(name)))
        return await super().unload(request)


def routed(name: str) -> tuple[str, ...]:
    with valkey() as client:
        text = client.get(ROUTING_TABLE)
    return RoutingTable.from_json(text).versions[name].replicas if text else ()


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    pair = [Engine(), Engine()]
    with Server(pair[0].app()) as first, Server(pair[1].app()) as second:
        pair[0].url, pair[1].url = first.url, second.url  # type: ignore[attr-defined]
        yield pair


@pytest.fixture
def served(fresh_database: str, alias: Alias, engines: list[Engine], alice: User) -> Alias:
    for engine in engines:
        alias.cluster.add_replica(url=engine.url, by=alice.as_actor())  # type: ignore[attr-defined]
    return alias


def path_of(version: AdapterVersion) -> str:
    return str(django_settings.SERVED_DIR / version.digest)


def ask_for(version: AdapterVersion) -> None:
    with valkey() as client:
        client.xadd(WANTS, {"version": version.served_name})


def test_replicas_are_worked_on_at_the_same_time(served: Alias, engines: list[Engine]) -> None:
    """Each load waits for the other replica's: one after the other would never end."""
    engines[0].meet = engines[1].meet = threading.Barrier(2)
    reconcile()
    assert len(routed(served.version.served_name)) == 2


@pytest.mark.parametrize(("reported", "known"), [(512, 512), (None, None), ("4096", None), (-1, None), (2**40, None)])
def test_the_longest_request_of_an_engine_is_learnt(
    reported: Any, known: int | None, served: Alias, engines: list[Engine]
) -> None:
    engines[0].max_length = reported
    reconcile()
    assert Replica.objects.get(url=engines[0].url).max_length == known  # type: ignore[attr-defined]
    wanted = {512} | ({known} if known else set())
    assert set(Replica.objects.lengths(served.cluster.base_model, served.project)) == wanted


def test_a_replica_of_another_base_model_is_away_with_the_reason(served: Alias, engines: list[Engine]) -> None:
    engines[0].base = "another"
    reconcile()
    replica = Replica.objects.get(url=engines[0].url)  # type: ignore[attr-defined]
    assert (replica.is_healthy, replica.message) == (False, "It does not serve tiny.")
    assert not engines[0].adapters
    assert routed(served.version.served_name) == (engines[1].url,)  # type: ignore[attr-defined]


def test_a_load_whose_answer_was_lost_is_probed_before_it_is_routed_to(served: Alias, engines: list[Engine]) -> None:
    name = served.version.served_name
    engines[0].loses_answers = True
    reconcile()
    assert name in engines[0].adapters, "accepted all the same"
    assert routed(name) == (engines[1].url,)  # type: ignore[attr-defined]
    assert not engines[0].received
    engines[0].loses_answers = False
    reconcile()
    assert [body["model"] for body, _ in engines[0].received] == [name]
    assert len(routed(name)) == 2
    assert AuditEvent.objects.filter(tag="replica:version_loaded").count() == 2


@pytest.mark.parametrize("lists", ["nothing", "another path"])
def test_a_replica_that_lies_about_what_it_loaded_is_no_endless_war(
    served: Alias, engines: list[Engine], lists: str
) -> None:
    """It takes every load and answers, but lists nothing, or files that are not the version's."""
    liar, name = engines[0], served.version.served_name
    liar.conceals = lists
    for _ in range(5):
        reconcile()
    events = AuditEvent.objects.filter(tag__in=["replica:version_loaded", "replica:load_refused"])
    assert [event.tag for event in events.filter(object_id=replica_of(liar).pk).order_by("pk")] == [
        "replica:version_loaded",
        "replica:load_refused",
    ]
    assert "does not list it" in replica_of(liar).refused[name]
    assert routed(name) == (engines[1].url,)  # type: ignore[attr-defined]


def replica_of(engine: Engine) -> Replica:
    return Replica.objects.get(url=engine.url)  # type: ignore[attr-defined]


def test_what_somebody_else_loaded_is_probed_and_refused_when_it_is_broken(
    served: Alias, engines: list[Engine]
) -> None:
    name = served.version.served_name
    engines[0].adapters[name] = path_of(served.version)
    engines[0].script.append(error(400, "BadRequestError", "not finite"))
    reconcile()
    assert name not in engines[0].adapters
    assert routed(name) == (engines[1].url,)  # type: ignore[attr-defined]
    assert "not finite" in Replica.objects.get(url=engines[0].url).refused[name]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_an_engine_whose_core_died_is_away_and_the_version_is_not_to_blame(
    served: Alias, engines: list[Engine]
) -> None:
    engines[0].is_healthy = False
    reconcile()
    replica = Replica.objects.get(url=engines[0].url)  # type: ignore[attr-defined]
    assert (replica.is_healthy, replica.refused) == (False, {})
    assert "not as a working engine" in replica.message
    engines[0].is_healthy = True
    reconcile()
    assert len(routed(served.version.served_name)) == 2


def test_a_replica_that_restarted_empty_gets_no_traffic_until_it_is_healed(
    served: Alias, engines: list[Engine]
) -> None:
    reconcile()
    engines[0].adapters.clear()
    engines[0].loses_answers = True
    reconcile()
    assert routed(served.version.served_name) == (engines[1].url,)  # type: ignore[attr-defined]


def test_a_full_replica_unloads_only_what_the_routers_no_longer_use(
    served: Alias, engines: list[Engine], candidate: AdapterVersion, alice: User, settings: Any
) -> None:
    served.cluster.max_loras = 1
    served.cluster.save()
    reconcile()
    old = served.version.served_name
    settings.ROLLBACK_WINDOW = timedelta(0)
    served.move(candidate, expected=served.version, reason="newer", by=alice.as_actor())
    reconcile()
    for engine in engines:
        assert set(engine.adapters) == {candidate.served_name}
        assert engine.routed_when_unloaded == [(old, ())]


def test_the_least_recently_used_waits_when_slots_are_few(
    served: Alias, engines: list[Engine], candidate: AdapterVersion, alice: User
) -> None:
    served.cluster.max_loras = 1
    served.cluster.save()
    Alias.create(
        project=served.project, name="other", cluster=served.cluster, version=candidate, policy={}, by=alice.as_actor()
    )
    answered(candidate, minutes_ago=2)
    answered(served.version, minutes_ago=1)
    reconcile()
    assert set(engines[0].adapters) == {served.version.served_name}
    answered(candidate, minutes_ago=0)
    reconcile()
    assert set(engines[0].adapters) == {candidate.served_name}


def answered(version: AdapterVersion, *, minutes_ago: float) -> None:
    Response.objects.create(
        id=f"{version.pk}-{minutes_ago}",
        project=version.project,
        version=version,
        arm="none",
        is_sticky=True,
        status=200,
        at=now() - timedelta(minutes=minutes_ago),
        total_ms=1,
    )


def test_what_a_request_waits_for_comes_first(served: Alias, engines: list[Engine], candidate: AdapterVersion) -> None:
    served.cluster.max_loras = 1
    served.cluster.save()
    reconcile()
    ask_for(candidate)
    reconcile()
    assert set(engines[0].adapters) == {candidate.served_name}


def test_without_valkey_nothing_is_unloaded(
    served: Alias, engines: list[Engine], candidate: AdapterVersion, settings: Any
) -> None:
    engines[0].adapters[candidate.served_name] = path_of(candidate)
    settings.REDIS_URL = "redis://127.0.0.1:9/0"
    reconcile()
    assert set(engines[0].adapters) == {served.version.served_name, candidate.served_name}


def flap(replica: Replica, times: int) -> None:
    for _ in range(times):
        replica.missed("gone")
        replica.saw(replica.loaded, "0.33.0")


@pytest.mark.slow
def test_a_replica_that_comes_and_goes_rests(served: Alias, engines: list[Engine]) -> None:
    reconcile()
    name, url = served.version.served_name, engines[0].url  # type: ignore[attr-defined]
    flap(Replica.objects.get(url=url), 2)
    reconcile()
    assert len(routed(name)) == 2, "twice is no flapping"
    flap(Replica.objects.get(url=url), 1)
    reconcile()
    assert routed(name) == (engines[1].url,)  # type: ignore[attr-defined]
    assert routing_table().versions[name].spare == (url,), "asked when the other does not answer"
    assert name in engines[0].adapters, "it stays ready"
    Replica.objects.filter(url=url).update(rests_until=now())
    reconcile()
    assert len(routed(name)) == 2


def test_replicas_that_all_come_and_go_are_better_than_none(served: Alias, engines: list[Engine]) -> None:
    reconcile()
    for replica in Replica.objects.all():
        flap(replica, 3)
    reconcile()
    assert len(routed(served.version.served_name)) == 2


def test_each_return_rests_longer_up_to_a_bound(served: Alias) -> None:
    replica = Replica.objects.first()
    replica.saw({}, "0.33.0")
    flap(replica, 3)
    first = replica.rests_until - now()
    flap(replica, 1)
    assert replica.rests_until - now() > first * 1.5
    flap(replica, 20)
    assert replica.rests_until - now() <= timedelta(minutes=5)


def test_who_waits_longest_is_loaded_first_and_who_was_asked_for_lately_stays(
    served: Alias, make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    """Two slots and four versions, of which each is asked for: the queue moves on with every look."""
    type(served.cluster).objects.update(max_loras=2)
    versions = [make_version(served.version.adapter, seed=seed) for seed in range(11, 14)]
    reconcile()
    for version in versions:
        ask_for(version)
    loaded = []
    for _ in range(3):
        reconcile()
        loaded.append(set(Replica.objects.first().loaded))  # type: ignore[union-attr]
    names = [version.served_name for version in versions]
    assert loaded[0] == set(names[:2]), "the first two in the queue"
    assert loaded[1] == {names[1], names[2]}, "the third, in place of the one that was asked for first"
    assert loaded[2] == loaded[1], "nobody waits any more"


def test_rollouts_keep_their_slots_whatever_is_asked_for(
    served: Alias, candidate: AdapterVersion, make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    type(served.cluster).objects.update(max_loras=2)
    served.cluster.refresh_from_db()
    Rollout.create(alias=served, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor())
    reconcile()
    ask_for(make_version(served.version.adapter, seed=11))
    reconcile()
    assert set(Replica.objects.first().loaded) == {served.version.served_name, candidate.served_name}  # type: ignore[union-attr]


def test_a_row_that_calls_anothers_load_ours_is_probed_before_it_is_routed_to(
    served: Alias, engines: list[Engine]
) -> None:
    name, path, url = served.version.served_name, path_of(served.version), engines[0].url  # type: ignore[attr-defined]
    engines[0].adapters[name] = path
    Replica.objects.filter(url=url).update(is_healthy=True, loaded={name: path})
    reconcile()
    assert [body["model"] for body, _ in engines[0].received] == [name]
    assert len(routed(name)) == 2


def test_a_row_with_files_that_are_not_the_versions_is_not_believed(served: Alias, version: AdapterVersion) -> None:
    name, replica = version.served_name, Replica.objects.first()
    for path in ("/elsewhere/1", str(django_settings.SERVED_DIR / ("0" * 64))):
        replica.pushed, replica.loaded = [name], {name: path}
        replica.saw({name: path}, "0.33.0")
        assert (replica.loaded, routing_table().versions[name].replicas) == ({}, ())
    replica.loaded = {name: path_of(version)}
    replica.saw({name: path_of(version)}, "0.33.0")
    assert replica.loaded == {name: path_of(version)}
