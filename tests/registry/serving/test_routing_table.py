"""Routers hear of one alias without the whole table, and both ways of telling end in the same table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from redis import Redis

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion, Alias, Rollout
from registry.serving import routing_table as publishing
from registry.serving.routing_table import publish, publish_changes, routing_table
from registry.serving.valkey import valkey
from serving_client.protocol import NEWEST_TABLE, ROUTING_CHANGES, ROUTING_TABLE, RoutingTable
from serving_client.router.table_follower import changed_since


def empty() -> Redis:
    client = valkey()
    client.delete(ROUTING_TABLE, ROUTING_CHANGES, NEWEST_TABLE)
    return client


def table_in(client: Redis) -> RoutingTable:
    """The table of a router that reads now."""
    whole = RoutingTable.from_json(client.get(ROUTING_TABLE) or b"")
    return changed_since(whole, client.zrange(ROUTING_CHANGES, 0, -1))


def same(one: RoutingTable, other: RoutingTable) -> bool:
    return replace(one, generation=0, published_at=0) == replace(other, generation=0, published_at=0)


def test_a_move_tells_of_its_alias_alone(
    fresh_database: str, alias: Alias, adapter: Adapter, make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    client, stable = empty(), alias.version
    publish()
    whole = client.get(ROUTING_TABLE)
    newer = make_version(adapter, seed=31)
    alias.move(newer, expected=stable, reason="better", by=alice.as_actor())
    assert client.get(ROUTING_TABLE) == whole, "the whole table is not written for one alias"
    assert table_in(client).aliases["eu/compliance"].stable == newer.served_name
    assert same(table_in(client), routing_table()), "a version that no whole table has told yet included"


def test_a_rollout_is_told_with_both_sides(
    fresh_database: str, alias: Alias, adapter: Adapter, make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    client = empty()
    publish()
    candidate = make_version(adapter, seed=32)
    rollout = Rollout.create(
        alias=alias, candidate=candidate, steps=[{"weight": 20}], reason="try", by=alice.as_actor()
    )
    rollout.started(by=alice.as_actor())
    route = table_in(client).aliases["eu/compliance"].rollout
    assert route
    assert (route.candidate, route.weight) == (candidate.served_name, 20)
    rollout.rollback(reason="worse", by=alice.as_actor())
    assert table_in(client).aliases["eu/compliance"].rollout is None
    assert same(table_in(client), routing_table())


def test_a_move_asks_as_often_with_many_versions(
    fresh_database: str, alias: Alias, adapter: Adapter, make_version: Callable[..., AdapterVersion]
) -> None:
    empty()
    with CaptureQueriesContext(connection) as before:
        publish_changes([alias.pk])
    for seed in range(40, 45):
        make_version(adapter, seed=seed)
    with CaptureQueriesContext(connection) as after:
        publish_changes([alias.pk])
    assert len(after) == len(before) == 11
    (_, entry) = valkey().zrange(ROUTING_CHANGES, 0, -1)
    assert len(RoutingTable.from_json(entry).versions) == 1


def test_an_older_table_does_not_replace_a_newer_one(fresh_database: str, alias: Alias) -> None:
    client = empty()
    late, newest = routing_table(), publish()
    with valkey() as other:
        other.transaction(lambda pipe: publishing.put(late, late.to_json(), pipe), NEWEST_TABLE)
    assert table_in(client).generation == newest.generation


def test_a_whole_table_takes_the_place_of_the_changes_that_it_knows(fresh_database: str, alias: Alias) -> None:
    client = empty()
    publish_changes([alias.pk])
    early = routing_table()
    publish_changes([alias.pk])
    client.transaction(lambda pipe: publishing.put(early, early.to_json(), pipe), NEWEST_TABLE)
    assert client.zcard(ROUTING_CHANGES) == 1, "the one that it may not know stays"
    publish()
    assert client.zcard(ROUTING_CHANGES) == 0


def test_after_a_restore_no_change_of_the_lost_future_is_out(fresh_database: str, alias: Alias) -> None:
    client = empty()
    future = replace(routing_table(), generation=10**6)
    client.transaction(lambda pipe: publishing.put(future, future.to_json(), pipe), NEWEST_TABLE)
    client.zadd(ROUTING_CHANGES, {replace(future, generation=10**6 + 1).to_json(): 10**6 + 1})
    assert table_in(client).generation == 10**6 + 1
    assert table_in(client).generation != publish().generation == table_in(client).generation < 10**6


def test_many_changes_become_a_table(fresh_database: str, alias: Alias, monkeypatch: pytest.MonkeyPatch) -> None:
    client = empty()
    monkeypatch.setattr(publishing, "MOST_CHANGES", 3)
    for _ in range(4):
        publish_changes([alias.pk])
    assert client.zcard(ROUTING_CHANGES) == 0
    assert table_in(client).aliases["eu/compliance"].stable == alias.version.served_name


def test_routers_hear_how_a_cluster_chooses_the_replica(fresh_database: str, alias: Alias, alice: User) -> None:
    name = alias.version.served_name
    assert routing_table().versions[name].routing == "least_loaded"
    client = empty()
    alias.cluster.change(routing="prefix_affinity", reason="long system prompts", by=alice.as_actor())
    publish()
    assert table_in(client).versions[name].routing == "prefix_affinity"
