"""What replicas hold, and what routers were told of them."""

from __future__ import annotations

from pathlib import Path

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
