"""The order in which replicas are asked, and prompts with the same beginning."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serving_client import RoutingTable
from serving_client.protocol import PREFIX_AFFINITY
from serving_client.router.upstream import replica_load
from serving_client.router.upstream.replica_choice import PREFIX_CHARACTERS, by_prefix, least_loaded, prefix_of
from serving_client.router.upstream.replica_load import ReplicaLoads
from tests.fakes.routing import make_table
from tests.fakes.stage import Engine, Router

REPLICAS = tuple(f"http://10.0.0.{number}:8000" for number in range(1, 6))
KEYS = [f"prompt {number}" for number in range(500)]
LONG = "You are the assistant of a bank. " * 40


def first(key: str, replicas: tuple[str, ...] = REPLICAS, busy: dict[str, int] | None = None, broken: str = "") -> str:
    return by_prefix(key, replicas, loads(busy), lambda url: url == broken)[0]


def loads(in_flight: dict[str, int] | None = None, reading: dict[str, int] | None = None) -> ReplicaLoads:
    made = ReplicaLoads()
    made.in_flight.update(in_flight or {})
    made.reading.update(reading or {})
    return made


def is_closed(url: str) -> bool:
    return False


def test_prompts_go_where_fewer_prompts_are_read() -> None:
    """Three answers ended together on the first replica: it gets one of the next prompts, and not all of them."""
    ours, chosen = loads({REPLICAS[0]: 29, REPLICAS[1]: 32}), []
    for _ in range(3):
        url = least_loaded(REPLICAS[:2], ours, is_closed)[0]
        chosen.append(url)
        ours.in_flight[url] += 1
        ours.reading[url] += 1
    assert Counter(chosen) == {REPLICAS[0]: 2, REPLICAS[1]: 1}
    assert least_loaded(REPLICAS[:2], loads({REPLICAS[0]: 1}, {REPLICAS[1]: 1}), is_closed)[0] == REPLICAS[0]


async def test_a_prompt_counts_until_the_first_token_and_one_of_a_whole_answer_for_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_load, "READING_S", 0.0)
    ours, url = ReplicaLoads(), REPLICAS[0]
    with ours.counted(url), ours.reading_prompt(url, is_stream=True):
        await asyncio.sleep(0.01)
        assert ours.of(url) == 1 + replica_load.PROMPT_WEIGHT
    with ours.counted(url), ours.reading_prompt(url, is_stream=False):
        assert ours.of(url) == 1 + replica_load.PROMPT_WEIGHT
        await asyncio.sleep(0.01)
        assert ours.of(url) == 1
    assert ours.of(url) == ours.reading[url] == 0


def test_prompts_are_spread_and_a_lost_replica_moves_only_its_own() -> None:
    before = {key: first(key) for key in KEYS}
    assert all(70 <= count <= 130 for count in Counter(before.values()).values())
    after = {key: first(key, REPLICAS[1:]) for key in KEYS}
    assert {key for key in KEYS if before[key] != after[key]} == {key for key in KEYS if before[key] == REPLICAS[0]}


def test_a_busy_or_broken_replica_is_asked_after_the_others() -> None:
    usual = first("prompt")
    assert first("prompt", busy={usual: 3}) == usual, "a few requests are decoded in one batch"
    assert first("prompt", busy=dict.fromkeys(REPLICAS, 40)) == usual, "as busy as the others"
    assert first("prompt", busy={**dict.fromkeys(REPLICAS, 40), usual: 60}) != usual
    assert first("prompt", broken=usual) != usual
    assert sorted(by_prefix("prompt", REPLICAS, loads({usual: 60}), is_closed)) == sorted(REPLICAS)


def test_of_busy_replicas_the_least_loaded_is_first() -> None:
    replicas = REPLICAS[:2]
    keys = [key for key in KEYS if first(key, replicas) == replicas[0]]
    assert {first(key, replicas, {replicas[0]: 90, replicas[1]: 10}) for key in keys} == {replicas[1]}


@pytest.mark.parametrize(
    ("body", "other", "is_same"),
    [
        ({"prompt": LONG + "one"}, {"prompt": LONG + "two"}, True),
        ({"prompt": "one"}, {"prompt": "two"}, False),
        ({"prompt": [5] * 400}, {"prompt": [5] * 300 + [6]}, True),
        ({"prompt": [LONG, "a"]}, {"prompt": [LONG, "b"]}, True),
        (
            {"messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "one"}]},
            {"messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "two"}]},
            True,
        ),
        ({"messages": [{"role": "user", "content": "one"}]}, {"messages": [{"role": "user", "content": "two"}]}, False),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, {"messages": [{"role": "tool"}]}, False),
        ({}, {"max_tokens": 4}, True),
    ],
)
def test_the_beginning_of_a_prompt(body: dict[str, Any], other: dict[str, Any], is_same: bool) -> None:
    assert (prefix_of(body) == prefix_of(other)) is is_same
    assert len(prefix_of(body)) <= PREFIX_CHARACTERS


def test_a_router_sends_a_prefix_to_one_replica(
    router: Router, engine: Engine, start_engine: Callable[..., Engine]
) -> None:
    engines = [engine, start_engine(), start_engine()]
    router.publish(affine(make_table(*(each.url for each in engines), generation=2)))
    answers = [router.complete(prompt=LONG + str(number)) for number in range(9)]
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(len(each.fake.received) for each in engines) == [0, 0, 9]


def affine(table: RoutingTable) -> RoutingTable:
    """The same table, as a router reads it, of a cluster whose routing is prefix affinity."""
    versions = {name: replace(route, routing=PREFIX_AFFINITY) for name, route in table.versions.items()}
    return RoutingTable.from_json(replace(table, versions=versions).to_json())
