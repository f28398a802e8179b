"""The table: heard at once, kept on disk, never replaced by an older or a broken one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from serving_client.router.table_follower import is_newer, load_snapshot, save_snapshot
from tests.fakes.routing import make_table
from tests.fakes.stage import Engine, Router, announce
from tests.fakes.valkey import Valkey
from tests.waiting import wait_until

StartRouter = Callable[..., Router]


def test_a_table_is_heard_within_100_ms(router: Router, engine: Engine) -> None:
    def seconds(generation: int) -> float:
        began = time.perf_counter()
        announce(router.valkey, make_table(engine.url, generation=generation))
        while router.generation() != generation:
            assert time.perf_counter() - began < 10
        return time.perf_counter() - began

    assert sorted(seconds(generation) for generation in range(2, 7))[2] < 0.1


def test_a_lost_message_is_healed(router: Router, engine: Engine) -> None:
    router.valkey.client.set("ah:routing-table", make_table(engine.url, generation=2).to_json())
    wait_until(lambda: router.generation() == 2)


def test_an_older_table_is_ignored(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=5, published_at=1000.0 + time.time()))
    announce(router.valkey, make_table(generation=4))
    router.publish(make_table(engine.url, generation=6))
    assert router.complete().is_success


@pytest.mark.parametrize(
    ("generation", "published_at", "expected"),
    [(6, 50.0, True), (5, 100.0, False), (4, 100.0, False), (4, 99.0, False), (4, 101.0, True), (5, 101.0, True)],
)
def test_newer(generation: int, published_at: float, expected: bool) -> None:
    current = make_table(generation=5, published_at=100.0)
    assert is_newer(make_table(generation=generation, published_at=published_at), current) is expected


def test_after_valkey_was_wiped_the_last_table_serves_and_a_new_count_is_accepted(
    router: Router, engine: Engine
) -> None:
    router.publish(make_table(engine.url, generation=9))
    router.valkey.client.flushall()
    assert router.complete().is_success
    router.publish(make_table(engine.url, generation=1))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"generation": 99}', '{"generation": "x"}'])
def test_a_broken_table_changes_nothing(router: Router, engine: Engine, text: str) -> None:
    router.valkey.client.set("ah:routing-table", text)
    router.valkey.client.publish("ah:routing-table", "99")
    assert router.complete().is_success
    router.publish(make_table(engine.url, generation=2))
    assert router.complete().is_success


def test_the_router_serves_on_and_reconnects(router: Router, engine: Engine) -> None:
    router.valkey.stop()
    assert router.complete().is_success
    assert router.generation() == 1
    router.valkey.start()
    router.publish(make_table(engine.url, generation=2))


def test_a_router_starts_without_valkey(
    start_router: StartRouter, engine: Engine, valkey: Valkey, tmp_path: Path
) -> None:
    start_router().publish(make_table(engine.url, generation=7))
    wait_until(lambda: load_snapshot(tmp_path / "table.json"))
    valkey.stop()
    router = start_router()
    assert router.generation() == 7
    assert router.complete().is_success


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "no table", "folder"])
def test_a_damaged_snapshot_is_not_used(start_router: StartRouter, engine: Engine, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.json"
    save_snapshot(path, make_table(engine.url).to_json().encode())
    intact = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "no table":
        save_snapshot(path, b"{}")
    else:
        path.write_bytes({"flipped": intact.replace(b"eu", b"us", 1), "cut": intact[:-9], "empty": b""}[damage])
    router = start_router()
    assert router.generation() is None
    # A snapshot that cannot be written does not keep the router from serving either.
    router.publish(make_table(engine.url, generation=2))
    assert router.complete().is_success


def test_the_snapshot_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "router/table.json"
    save_snapshot(path, make_table().to_json().encode())
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]
    assert load_snapshot(path)
