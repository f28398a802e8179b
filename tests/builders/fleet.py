"""Two replicas that answer in vLLM's words, what replicas hold, and what routers were told of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.accounts.models import User
from registry.models import Alias
from registry.serving.valkey import valkey
from serving_client.protocol import ROUTING_TABLE, RoutingTable
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server


class OnDisk(dict[str, int]):
    """Folders that exist, with adapters of rank 4."""

    def __contains__(self, path: object) -> bool:
        return Path(str(path)).is_dir()

    def __missing__(self, path: str) -> int:
        return 4


def published() -> RoutingTable:
    with valkey() as client:
        return RoutingTable.from_json(client.get(ROUTING_TABLE))


def names(pair: tuple[FakeEngine, Server]) -> set[str]:
    return set(pair[0].adapters)


@pytest.fixture
def engines() -> Iterator[list[tuple[FakeEngine, Server]]]:
    pairs = []
    for _ in range(2):
        engine = FakeEngine()
        engine.folders = OnDisk()
        pairs.append((engine, Server(engine.app())))
    with pairs[0][1], pairs[1][1]:
        yield pairs


@pytest.fixture
def served(fresh_database: str, alias: Alias, engines: list[tuple[FakeEngine, Server]], alice: User) -> Alias:
    """An alias on a cluster of both replicas."""
    for _, server in engines:
        alias.cluster.add_replica(url=server.url, by=alice.as_actor())
    return alias
