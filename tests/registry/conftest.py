"""Two replicas that answer in vLLM's words, and an alias that is served on both."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from adapterhub.accounts.models import User
from registry.models import Alias
from tests.builders.fleet import OnDisk
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server


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
