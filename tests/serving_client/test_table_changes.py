"""What is told of single aliases between two whole tables: heard at once, in its order, kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from serving_client import AliasRoute, RoutingTable
from serving_client.router.table_follower import load_snapshot
from tests.fakes.routing import CANDIDATE, STABLE, make_table
from tests.fakes.stage import Engine, Router, announce
from tests.fakes.valkey import Valkey
from tests.waiting import wait_until

StartRouter = Callable[..., Router]
MODEL = "compliance"


def change(engine: Engine, generation: int, version: str) -> RoutingTable:
    whole = make_table(engine.url, generation=generation)
    return replace(
        whole,
        aliases={f"eu/{MODEL}": AliasRoute("eu", version, default_of="dora")},
        versions={version: whole.versions[version]},
        adapters={},
        tokens={},
    )


def publish_change(valkey: Valkey, table: RoutingTable) -> None:
    valkey.client.zadd("ah:routing-changes", {table.to_json(): table.generation})
    valkey.client.publish("ah:routing-table", str(table.generation))


def serves(router: Router, version: str) -> bool:
    return router.complete(model=MODEL).json()["model"] == version


def test_a_change_is_heard_within_100_ms(router: Router, engine: Engine) -> None:
    def seconds(generation: int) -> float:
        began = time.perf_counter()
        publish_change(router.valkey, change(engine, generation, CANDIDATE))
        while router.generation() != generation:
            assert time.perf_counter() - began < 10
        return time.perf_counter() - began

    assert sorted(seconds(generation) for generation in range(2, 7))[2] < 0.1
    assert serves(router, CANDIDATE)
    assert router.complete(model="dora").json()["model"] == CANDIDATE, "an adapter's name follows its alias"


def test_changes_that_come_in_disorder_count_by_their_numbers(router: Router, engine: Engine) -> None:
    publish_change(router.valkey, change(engine, 9, STABLE))
    publish_change(router.valkey, change(engine, 8, CANDIDATE))
    wait_until(lambda: router.generation() == 9)
    assert serves(router, STABLE)


def test_a_whole_table_that_does_not_know_the_change_does_not_undo_it(router: Router, engine: Engine) -> None:
    publish_change(router.valkey, change(engine, 9, CANDIDATE))
    wait_until(lambda: router.generation() == 9)
    announce(router.valkey, make_table(engine.url, generation=8, published_at=time.time() + 100))
    publish_change(router.valkey, change(engine, 10, CANDIDATE))
    wait_until(lambda: router.generation() == 10)
    assert serves(router, CANDIDATE)


def test_a_whole_table_that_knows_it_replaces_it(router: Router, engine: Engine) -> None:
    publish_change(router.valkey, change(engine, 2, CANDIDATE))
    wait_until(lambda: router.generation() == 2)
    router.publish(make_table(engine.url, generation=3))
    assert serves(router, STABLE)


def test_a_change_outlives_router_and_valkey(
    start_router: StartRouter, engine: Engine, valkey: Valkey, tmp_path: Path
) -> None:
    router = start_router()
    router.publish(make_table(engine.url, generation=7))
    publish_change(valkey, change(engine, 8, CANDIDATE))
    wait_until(lambda: (snapshot := load_snapshot(tmp_path / "table.json")) and snapshot.generation == 8)
    valkey.stop()
    assert serves(start_router(), CANDIDATE)


def test_what_is_no_change_is_passed_over(router: Router, engine: Engine) -> None:
    router.valkey.client.zadd("ah:routing-changes", {"{": 2, "[]": 3})
    publish_change(router.valkey, change(engine, 4, CANDIDATE))
    wait_until(lambda: router.generation() == 4)
    assert serves(router, CANDIDATE)
