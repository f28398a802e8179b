"""Placement of 300 adapters on 20 replicas of 32 slots, by rendezvous hashing and by its peers, simulated.

Requests follow a Zipf law, and replicas are lost and added one at a time. A request for a version that no replica holds
is a miss, after which it is loaded. The peers: every replica holds the same most recently used versions, as with
`replicas: all`; and a version's number modulo the number of replicas. 12 versions are pinned, on two replicas each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.report import Row, arguments, publish
from registry.serving.placement import place

ADAPTERS, REPLICAS, SLOTS, PINNED = 300, 20, 32, 12
EVERY, EXPONENT = 1_000, 1.1
NAMES = [f"eu.a{number}.v1-0123456789ab" for number in range(ADAPTERS)]
NUMBERS = {name: number for number, name in enumerate(NAMES)}
Contents = dict[int, list[str]]
Placing = Callable[[list[tuple[str, int]], dict[int, int]], Contents]


def by_hashing(versions: list[tuple[str, int]], rooms: dict[int, int]) -> Contents:
    return place(versions, rooms)


def by_modulo(versions: list[tuple[str, int]], rooms: dict[int, int]) -> Contents:
    replicas = sorted(rooms)
    contents: Contents = {replica: [] for replica in replicas}
    for name, copies in versions:
        first = NUMBERS[name] % len(replicas)
        for replica in (replicas[first:] + replicas[:first])[:copies]:
            if len(contents[replica]) < rooms[replica]:
                contents[replica].append(name)
    return contents


def everywhere(versions: list[tuple[str, int]], rooms: dict[int, int]) -> Contents:
    return {replica: [name for name, _ in versions[:room]] for replica, room in rooms.items()}


def fleet_in(period: int) -> list[int]:
    """The replicas in a period: by turns one is lost, comes back, one is added, and that one goes again."""
    turn, number = period % 4, period // 4
    lost = number % REPLICAS if turn == 1 else None
    added = [REPLICAS + number] if turn == 3 else []
    return [replica for replica in range(REPLICAS) if replica != lost] + added


class Fleet:
    """The replicas and what they hold under one way of placing."""

    def __init__(self, placing: Placing) -> None:
        self.placing, self.order = placing, list(NAMES)
        self.pinned = set(NAMES[-PINNED:])
        self.replicas_of: dict[str, set[int]] = {}

    def settle(self, replicas: list[int]) -> int:
        """Place everything on these replicas; return how many versions had to be loaded somewhere."""
        versions = [(name, 2) for name in NAMES if name in self.pinned]
        versions += [(name, 1) for name in self.order if name not in self.pinned]
        before, self.replicas_of = self.replicas_of, {}
        for replica, names in self.placing(versions, dict.fromkeys(replicas, SLOTS)).items():
            for name in names:
                self.replicas_of.setdefault(name, set()).add(replica)
        return sum(not homes <= before.get(name, set()) for name, homes in self.replicas_of.items())

    def ask(self, name: str) -> bool:
        """Use a version; return True if a replica holds it."""
        self.order.remove(name)
        self.order.insert(0, name)
        return name in self.replicas_of


def simulated(placing: Placing, periods: int) -> tuple[float, float, int]:
    """Return the hit rate in percent, versions loaded for each change of the fleet, and evictions of pinned ones."""
    rng = np.random.default_rng(7)
    weights = 1 / np.arange(1, ADAPTERS + 1) ** EXPONENT
    fleet = Fleet(placing)
    fleet.settle(fleet_in(0))
    hits, evictions = 0, 0
    loads: list[int] = []
    for period in range(periods):
        if period and fleet_in(period) != fleet_in(period - 1):
            loads.append(fleet.settle(fleet_in(period)))
            evictions += sum(name not in fleet.replicas_of for name in fleet.pinned)
        for number in rng.choice(ADAPTERS, EVERY, p=weights / weights.sum()):
            is_hit = fleet.ask(NAMES[number])
            hits += is_hit
            if not is_hit:
                fleet.settle(fleet_in(period))
    return 100 * hits / (periods * EVERY), float(np.mean(loads)), evictions


def main() -> None:
    options = arguments(__doc__ or "")
    periods = 25 if options.short else 100
    ours, alike, modulo = (simulated(placing, periods) for placing in (by_hashing, everywhere, by_modulo))
    share = ADAPTERS / REPLICAS
    rows = [
        Row("hit rate, %, against every replica alike", ours[0], alike[0], ours[0] / alike[0]),
        Row("loads for a change of the fleet, against modulo", ours[1], modulo[1], modulo[1] / ours[1]),
        Row("loads for a change, against 1/n of the versions", ours[1], share, share / ours[1]),
        Row("evictions of pinned versions, against every replica alike", ours[2], alike[2], 1.0),
    ]
    publish("placement", rows, options.out)


if __name__ == "__main__":
    main()
