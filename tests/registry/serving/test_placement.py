"""Placement by rendezvous hashing: few moves, no replica over its slots, and routers send to the holders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.accounts.models import User
from adapterhub.core.errors import Invalid
from registry.models import AdapterVersion, Alias, Cluster, Replica
from registry.models.alias_policy import check_policy, copies
from registry.serving.placement import place
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import routing_table
from tests.builders.fleet import names
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server

VERSIONS = [(f"eu.a{number}.v1-0123456789ab", 1) for number in range(300)]


def homes(contents: dict[int, list[str]]) -> dict[str, set[int]]:
    replicas_of: dict[str, set[int]] = {}
    for replica, present in contents.items():
        for name in present:
            replicas_of.setdefault(name, set()).add(replica)
    return replicas_of


def test_losing_and_adding_one_of_twenty_moves_about_a_twentieth() -> None:
    before = homes(place(VERSIONS, dict.fromkeys(range(20), 32)))
    assert set(before) == {name for name, _ in VERSIONS}
    lost = homes(place(VERSIONS, dict.fromkeys(range(1, 20), 32)))
    moved = [name for name in before if before[name] != lost[name]]
    assert all(before[name] == {0} for name in moved), "nobody moves but those that have to"
    assert len(moved) <= 2 * 300 / 20
    added = homes(place(VERSIONS, dict.fromkeys(range(21), 32)))
    assert len([name for name in before if before[name] != added[name]]) <= 2 * 300 / 21


@given(
    st.lists(st.tuples(st.integers(0, 60), st.none() | st.integers(1, 5)), max_size=60, unique_by=lambda pair: pair[0]),
    st.dictionaries(st.integers(0, 9), st.integers(0, 6), max_size=8),
)
def test_no_replica_holds_more_than_it_has_room_for_nor_a_version_twice(
    drawn: list[tuple[int, int | None]], rooms: dict[int, int]
) -> None:
    versions = [(f"v{number}", count) for number, count in drawn]
    contents = place(versions, rooms)
    assert set(contents) == set(rooms)
    for replica, present in contents.items():
        assert len(present) <= rooms[replica]
        assert len(set(present)) == len(present)
    counted = Counter(name for present in contents.values() for name in present)
    for name, count in versions:
        assert counted[name] <= (count or len(rooms))
    if versions and any(rooms.values()):
        first, count = versions[0]
        able = sum(room > 0 for room in rooms.values())
        assert counted[first] == min(count or able, able), "the most urgent one gets all its copies"


def test_a_replica_that_refused_a_version_is_passed_over() -> None:
    ((name, _),) = VERSIONS[:1]
    (home,) = homes(place(VERSIONS[:1], {1: 1, 2: 1}))[name]
    assert homes(place(VERSIONS[:1], {1: 1, 2: 1}, {home: [name]}))[name] == {3 - home}


@pytest.mark.parametrize("replicas", ["all", "auto", 1, 3])
def test_a_policy_says_on_how_many_replicas(replicas: object) -> None:
    check_policy({"replicas": replicas})
    assert copies({"replicas": replicas}) == (
        replicas if isinstance(replicas, int) else {"all": None, "auto": 1}[str(replicas)]
    )
    assert copies({"replicas": "auto", "quorum": 1}) == 2
    assert copies({}) is None


@pytest.mark.parametrize("replicas", [0, True, "some", 1.5, None])
def test_another_number_is_refused(replicas: object) -> None:
    with pytest.raises(Invalid, match="replicas must be"):
        check_policy({"replicas": replicas})


def test_each_version_is_loaded_where_it_is_placed_and_routed_there(
    served: Alias,
    engines: list[tuple[FakeEngine, Server]],
    make_version: Callable[..., AdapterVersion],
    alice: User,
) -> None:
    by = alice.as_actor()
    served.set_policy({"replicas": 1}, by=by)
    Cluster.objects.update(max_loras=3)
    versions = [served.version]
    for number in range(5):
        versions.append(make_version(served.version.adapter, seed=20 + number))
        Alias.create(
            project=served.project,
            name=f"n{number}",
            cluster=served.cluster,
            version=versions[-1],
            policy={"replicas": 1},
            by=by,
        )
    reconcile()
    assert len(names(engines[0])) == len(names(engines[1])) == 3
    assert names(engines[0]) | names(engines[1]) == {version.served_name for version in versions}
    table = routing_table()
    for version in versions:
        (url,) = table.versions[version.served_name].replicas
        assert version.served_name in names(next(pair for pair in engines if pair[1].url == url))
    Replica.objects.get(url=engines[0][1].url).drain(reason="x", by=by, confirm=True)
    reconcile()
    assert (len(names(engines[0])), len(names(engines[1]))) == (0, 3)
