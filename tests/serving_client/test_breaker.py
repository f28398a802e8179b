"""The circuit breaker, and what goes along to the replicas."""

from __future__ import annotations

from collections.abc import Callable

from serving_client.router.upstream.breaker import FAILURES, PAUSE_S, Breaker
from tests.fakes.engine import CORE_DIED, error
from tests.fakes.routing import FOREIGNER, INFER, make_table
from tests.fakes.stage import Engine, Router

URL = "http://replica"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock=clock)
    for _ in range(FAILURES):
        breaker.failed(URL)
    return breaker


def test_failures_in_a_row_open_it_and_one_answer_closes_it() -> None:
    breaker = Breaker(clock=Clock())
    for _ in range(FAILURES - 1):
        breaker.failed(URL)
    assert not breaker.is_open(URL)
    breaker.answered(URL)
    breaker.failed(URL)
    assert not breaker.is_open(URL), "not in a row"


def test_after_the_pause_one_request_finds_out() -> None:
    clock = Clock()
    breaker = opened(clock)
    assert breaker.open_now() == [URL]
    clock.now = PAUSE_S
    assert not breaker.is_open(URL)
    breaker.trying(URL)
    assert breaker.is_open(URL), "the others wait for its result"
    breaker.answered(URL)
    assert not breaker.is_open(URL)


def test_a_replica_that_keeps_failing_is_left_alone(
    router: Router, engine: Engine, start_engine: Callable[..., Engine]
) -> None:
    sick = start_engine()
    sick.fake.script.extend(error(500, "InternalServerError", CORE_DIED) for _ in range(200))
    router.publish(make_table(sick.url, engine.url, generation=2))
    failed = [router.complete().status_code for _ in range(60)].count(502)
    assert failed == len(sick.fake.received) == FAILURES
    assert "adapterhub_replicas_failing 1.0" in router.http.get("/metrics").text


def test_the_last_replica_is_asked_even_when_it_fails(router: Router, engine: Engine) -> None:
    engine.fake.script.extend(error(500, "InternalServerError", CORE_DIED) for _ in range(FAILURES + 1))
    assert [router.complete().status_code for _ in range(FAILURES + 2)] == [502] * (FAILURES + 1) + [200]


def test_each_project_has_its_own_salt(router: Router, engine: Engine) -> None:
    for headers, model in ((INFER, "compliance"), (INFER, "dora"), (FOREIGNER, "billing")):
        assert router.complete(headers, model=model).status_code == 200
    first, again, other = (body["cache_salt"] for body, _ in engine.fake.received)
    assert first == again != other


def test_the_trace_goes_along(router: Router, engine: Engine) -> None:
    router.complete(INFER | {"traceparent": TRACE, "tracestate": "a=b"})
    sent = engine.fake.received[0][1]
    assert (sent["traceparent"], sent["tracestate"]) == (TRACE, "a=b")


def test_without_a_trace_the_response_id_begins_one(router: Router, engine: Engine) -> None:
    for headers in ({}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-00f067aa0ba902b7-01"}):
        answer = router.complete(INFER | headers)
        assert answer.headers["x-response-id"] in engine.fake.received[-1][1]["traceparent"]


def test_metrics_tell_tokens_and_pace_of_each_arm(start_router: Callable[..., Router], engine: Engine) -> None:
    router = start_router(metrics_token="watch")
    router.publish(make_table(engine.url))
    router.complete(INFER, stream=True)
    router.reported()
    text = router.http.get("/metrics", headers={"Authorization": "Bearer watch"}).text
    labels = 'alias="compliance",arm="none"'
    assert (
        f'adapterhub_tokens_total{{{labels},kind="completion",project="eu",version="dora.v1-0123456789ab"}} 2.0' in text
    )
    assert f'adapterhub_inter_token_seconds_count{{{labels},project="eu",version="dora.v1-0123456789ab"}} 1.0' in text
    assert "adapterhub_waiting_for_load 0.0" in text
