"""Engines that ask for an API key: the router calls them with it, and the table shows it to nobody else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from serving_client.engine_keys import sealed
from tests.fakes.routing import INFER, make_table
from tests.fakes.stage import running_engine, running_router, running_valkey
from tests.waiting import wait_until


def test_the_engine_gets_its_key_and_never_the_callers_token(tmp_path: Path) -> None:
    with running_valkey() as valkey, running_engine() as engine, running_router(valkey, tmp_path, secret="s") as router:
        keys = {engine.url: sealed("sk-engine", "s")}
        router.publish(replace(make_table(engine.url), engine_keys=keys))
        assert router.complete().status_code == 200
        (_, headers), *_ = engine.fake.received
        assert headers["authorization"] == "Bearer sk-engine"
        assert INFER["Authorization"] not in headers.values()
        snapshot = tmp_path / "table.json"
        wait_until(snapshot.exists, what="the snapshot")
        assert "sk-engine" not in snapshot.read_text()


def test_a_key_that_was_sealed_with_another_secret_is_not_sent(tmp_path: Path) -> None:
    with running_valkey() as valkey, running_engine() as engine, running_router(valkey, tmp_path, secret="s") as router:
        router.publish(replace(make_table(engine.url), engine_keys={engine.url: sealed("sk-engine", "other")}))
        router.complete()
        assert "authorization" not in engine.fake.received[0][1]
