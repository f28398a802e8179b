"""Calls to replicas: the loads of one run side by side, and each result counts as soon as it is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from registry.serving.replica_calls import LOADS_AT_ONCE, Engine, Loaded, LoadRequest, push, stream
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server
from tests.waiting import wait_until

NAMES = [f"v{number}" for number in range(LOADS_AT_ONCE + 2)]
REQUESTS = [LoadRequest(name, f"/served/{name}", None) for name in NAMES]


@pytest.fixture
def fake() -> FakeEngine:
    engine = FakeEngine()
    engine.folders = {request.path: 8 for request in REQUESTS}
    return engine


@pytest.fixture
def engine(fake: FakeEngine) -> Iterator[Engine]:
    with Server(fake.app()) as server:
        yield Engine(server.url)


def test_loads_of_a_replica_wait_side_by_side(fake: FakeEngine, engine: Engine) -> None:
    results: list[Loaded] = []
    fake.gate.clear()
    with ThreadPoolExecutor(1) as thread:
        pushed = thread.submit(push, engine, REQUESTS, time.monotonic() + 60, results.append)
        # Each is in the middle of its probe, and none has ended.
        wait_until(lambda: len(fake.received) == LOADS_AT_ONCE)
        assert (len(fake.adapters), results) == (LOADS_AT_ONCE, [])
        fake.gate.set()
        pushed.result()
    assert sorted(result.name for result in results) == NAMES
    assert [(result.refusal, result.problem) for result in results] == [("", "")] * len(NAMES)


def test_a_result_is_given_while_other_loads_go_on(fake: FakeEngine, engine: Engine) -> None:
    del fake.folders["/served/v0"]
    fake.gate.clear()
    with ThreadPoolExecutor(1) as thread:
        given = stream([("replica", lambda give: push(engine, REQUESTS[:3], time.monotonic() + 60, give))])
        [(_, refused)] = thread.submit(next, given).result(30)
        assert (refused.name, bool(refused.refusal)) == ("v0", True)
        fake.gate.set()
        assert sorted(result.name for batch in given for _, result in batch) == ["v1", "v2"]


def test_no_load_begins_after_a_problem(fake: FakeEngine, engine: Engine) -> None:
    results: list[Loaded] = []
    fake.is_healthy = False
    push(engine, REQUESTS, time.monotonic() + 60, results.append)
    assert 1 <= len(results) <= LOADS_AT_ONCE
    assert all(result.problem for result in results)


def test_no_load_begins_after_its_time(fake: FakeEngine, engine: Engine) -> None:
    results: list[Loaded] = []
    push(engine, REQUESTS, time.monotonic() - 1, results.append)
    assert (results, fake.adapters) == ([], {})


def test_an_error_of_a_call_is_raised_where_results_are_read() -> None:
    def fails(give: object) -> None:
        raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        list(stream([("replica", fails)]))
