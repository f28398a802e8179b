"""Replicas that fail, and streams."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from starlette.responses import JSONResponse, Response

from serving_client import RoutingTable
from serving_client.router.upstream import whole_answers
from tests.fakes.engine import CORE_DIED, error
from tests.fakes.routing import INFER, STABLE, make_table
from tests.fakes.server import closed_url, dying_replica
from tests.fakes.stage import Engine, Router
from tests.waiting import wait_until

StartEngine = Callable[..., Engine]
STREAM = {"model": "compliance", "prompt": "a", "stream": True}


def test_a_dead_replica_costs_nobody_an_answer(router: Router, engine: Engine) -> None:
    router.publish(make_table(closed_url(), engine.url, generation=2))
    assert [router.complete().status_code for _ in range(10)] == [200] * 10


def test_a_spare_replica_is_asked_when_no_other_answers(
    router: Router, engine: Engine, start_engine: StartEngine
) -> None:
    spare = start_engine()
    router.publish(with_spare(make_table(engine.url, generation=2), spare.url))
    assert [router.complete().status_code for _ in range(5)] == [200] * 5
    assert not spare.fake.received
    router.publish(with_spare(make_table(closed_url(), generation=3), spare.url))
    assert [router.complete().status_code for _ in range(5)] == [200] * 5
    assert len(spare.fake.received) == 5


def with_spare(table: RoutingTable, url: str) -> RoutingTable:
    return replace(table, versions={name: replace(route, spare=(url,)) for name, route in table.versions.items()})


@pytest.mark.parametrize("status", [502, 503])
def test_a_replica_that_cannot_now(router: Router, engine: Engine, start_engine: StartEngine, status: int) -> None:
    tired = start_engine()
    tired.fake.script.extend(error(status, "Scripted", "not now") for _ in range(20))
    router.publish(make_table(tired.url, engine.url, generation=2))
    assert [router.complete().status_code for _ in range(10)] == [200] * 10


def test_a_replica_that_restarted_empty(router: Router, engine: Engine, start_engine: StartEngine) -> None:
    empty = start_engine("another")
    router.publish(make_table(empty.url, engine.url, generation=2))
    assert {router.complete().json()["model"] for _ in range(10)} == {STABLE}


@pytest.mark.parametrize("broken", ["down", "empty", "failing"])
def test_no_replica_can(router: Router, start_engine: StartEngine, broken: str) -> None:
    replica = start_engine("another")
    if broken == "failing":
        replica.fake.script.append(error(500, "InternalServerError", CORE_DIED))
    router.publish(make_table(closed_url() if broken == "down" else replica.url, generation=2))
    answer = router.complete()
    assert answer.status_code == 502
    assert answer.headers["x-adapter-version"] == STABLE
    assert int(answer.headers["retry-after"]) > 0
    assert "EngineCore" not in answer.text
    assert "aliases" not in answer.text
    report = router.reported()[0]
    assert (report["status"], report["response_id"]) == (502, answer.headers["x-response-id"])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("lost", ["killed", "empty"])
def test_a_request_that_no_holder_takes_goes_to_the_next_holder(
    start_router: Callable[..., Router], start_engine: StartEngine, lost: str, stream: bool
) -> None:
    """The only holder was killed, or is back and empty; the control loop sees it a moment later, and then reloads."""
    router, other = start_router(other_holder_s=30.0), start_engine()
    gone = closed_url() if lost == "killed" else start_engine("another").url
    router.publish(make_table(gone))
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(router.complete, stream=stream) for _ in range(4)]
        router.publish(make_table(gone, generation=2))
        router.publish(make_table(generation=3))
        wait_until(lambda: router.valkey.client.xlen("ah:wants") == 1, what="the request for the cold version")
        router.publish(make_table(other.url, generation=4))
        assert [each.result().status_code for each in answers] == [200] * 4
    assert len(other.fake.received) == 4


@pytest.mark.slow
def test_who_finds_no_holder_waits_as_long_as_for_a_load_and_no_longer(start_router: Callable[..., Router]) -> None:
    """A loop that loads elsewhere may see a killed replica later than after 5 s, when requests once failed."""
    router = start_router(load_deadline_s=6.0, other_holder_s=None)
    router.publish(make_table(closed_url()))
    began = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(router.complete)
        wait_until(lambda: time.monotonic() > began + 5.5)
        assert not waiting.done()
        router.publish(make_table(generation=2))
        assert waiting.result().json()["error"]["code"] == "load_timeout"
    assert time.monotonic() - began < 10, "a load would be waited for another 6 s"


def test_a_request_that_breaks_a_replica_is_not_sent_to_the_next(router: Router, start_engine: StartEngine) -> None:
    replicas = [start_engine(), start_engine()]
    for replica in replicas:
        replica.fake.script.append(error(500, "InternalServerError", CORE_DIED))
    router.publish(make_table(*(replica.url for replica in replicas), generation=2))
    assert router.complete().status_code == 502
    assert sum(len(replica.fake.received) for replica in replicas) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_replica_that_dies_with_a_request_costs_nobody_an_answer(
    router: Router, engine: Engine, stream: bool
) -> None:
    with dying_replica() as dying:
        router.publish(make_table(dying.url, engine.url, generation=2))
        assert [router.complete(stream=stream).status_code for _ in range(10)] == [200] * 10
        assert dying.requests


def test_a_request_that_kills_its_replicas_is_sent_to_two_at_most(router: Router) -> None:
    with dying_replica() as one, dying_replica() as two, dying_replica() as three:
        router.publish(make_table(one.url, two.url, three.url, generation=2))
        answer = router.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "replica_broke_off")
        assert one.requests + two.requests + three.requests == 2
    assert answer.headers["x-adapter-version"] == STABLE
    assert router.reported()[0]["status"] == 502


def test_the_engines_refusal_reaches_the_caller(router: Router, engine: Engine) -> None:
    engine.fake.script.append(error(400, "BadRequestError", "max_tokens is too large"))
    answer = router.complete()
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "max_tokens is too large")
    assert answer.headers["x-response-id"]
    assert router.reported()[0]["status"] == 400


def test_the_next_request_goes_where_fewer_are_in_flight(
    router: Router, engine: Engine, start_engine: StartEngine
) -> None:
    other = start_engine()
    router.publish(make_table(engine.url, other.url, generation=2))
    engine.fake.gate.clear()
    other.fake.gate.clear()
    with ThreadPoolExecutor(8) as threads:
        waiting = []
        for number in range(1, 9):
            waiting.append(threads.submit(router.complete))
            wait_until(lambda count=number: len(engine.fake.received) + len(other.fake.received) == count)
        assert len(engine.fake.received) == len(other.fake.received) == 4
        engine.fake.gate.set()
        other.fake.gate.set()
        assert all(answer.result().is_success for answer in waiting)


def test_chunks_arrive_before_the_end(router: Router, engine: Engine) -> None:
    engine.fake.gate.clear()
    with router.http.stream("POST", "/v1/completions", headers=INFER, json=STREAM) as answer:
        chunks = answer.iter_text()
        assert "two" in next(chunks)
        engine.fake.gate.set()
        rest = "".join(chunks)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-adapter-version"] == STABLE
    assert rest.endswith("data: [DONE]\n\n")
    report = router.reported()[0]
    assert (report["status"], report["prompt_tokens"], report["completion_tokens"]) == (200, 3, 2)
    assert 0 < report["ttft_ms"] <= report["total_ms"]


def test_a_stream_that_breaks_does_not_look_whole_and_is_one_line_in_the_log(
    router: Router, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fake.breaks = True
    with (
        pytest.raises(httpx.RemoteProtocolError),
        router.http.stream("POST", "/v1/completions", headers=INFER, json=STREAM) as answer,
    ):
        for _ in answer.iter_text():
            pass
    outcome = router.reported()[0]
    assert outcome["status"] == 502
    line = next(record for record in caplog.records if record.name == "serving_client.router.http.proxy")
    assert line.getMessage().startswith(f"Answer {outcome['response_id']} was broken off by its replica: {engine.url}")
    traces = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert traces == [ConnectionResetError], "the fake's own, and none of the router's"


def test_who_leaves_a_stream_is_no_failure_of_the_version(
    router: Router, engine: Engine, start_engine: StartEngine
) -> None:
    engine.fake.gate.clear()
    with router.http.stream("POST", "/v1/completions", headers=INFER, json=STREAM) as answer:
        next(answer.iter_text())
    assert router.reported()[0]["status"] == 499
    engine.fake.gate.set()
    # The replica that was left counts as free again.
    other = start_engine()
    router.publish(make_table(engine.url, other.url, generation=2))
    for _ in range(30):
        router.complete()
    assert len(engine.fake.received) > 1


def test_errors_of_a_stream_come_before_it(router: Router) -> None:
    router.publish(make_table(closed_url(), generation=2))
    answer = router.complete(stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "no_replica_answers")


@pytest.mark.threat("D37")
def test_whole_answers_have_a_bound_and_give_it_back(
    router: Router, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_answers, "MOST_HELD_BYTES", 2**20)
    for _ in range(3):
        engine.fake.script.append(Response(b"a" * 2**20))
        refused = router.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (502, "answer_too_large")
        engine.fake.script.append(Response(b"a" * 400_000))
        assert router.complete().content == b"a" * 400_000


@pytest.mark.threat("D37")
def test_a_count_that_is_none_is_estimated(router: Router, engine: Engine) -> None:
    engine.fake.script.append(JSONResponse({"choices": [{"text": "a"}], "usage": {"prompt_tokens": 10**30}}))
    assert router.complete().status_code == 200
    assert router.reported()[0]["prompt_tokens"] < 10
