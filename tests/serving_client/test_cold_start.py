"""Versions that no replica holds."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tests.fakes.routing import CANDIDATE, STABLE, make_table
from tests.fakes.stage import Engine, Router, announce
from tests.fakes.valkey import Valkey
from tests.waiting import wait_until


def wants(valkey: Valkey) -> list[str]:
    return [fields[b"version"].decode() for _, fields in valkey.client.xrange("ah:wants")]


def test_all_wait_for_one_load(start_router: Callable[..., Router], engine: Engine, valkey: Valkey) -> None:
    router = start_router()
    router.publish(make_table())
    with ThreadPoolExecutor(5) as threads:
        waiting = [threads.submit(router.complete) for _ in range(5)]
        wait_until(lambda: wants(valkey), what="a want")
        announce(valkey, make_table(generation=2))
        announce(valkey, make_table(engine.url, generation=3))
        answers = [answer.result() for answer in waiting]
    assert {answer.json()["model"] for answer in answers} == {STABLE}
    assert wants(valkey) == [STABLE]


def test_a_version_that_was_unloaded_again_is_asked_for_at_once(
    start_router: Callable[..., Router], engine: Engine, valkey: Valkey
) -> None:
    router = start_router()
    router.publish(make_table())
    for turn in range(2):
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(router.complete)
            wait_until(lambda turn=turn: len(wants(valkey)) == turn + 1, what="a want of each turn")
            router.publish(make_table(engine.url, generation=2 * turn + 2))
            assert waiting.result().json()["model"] == STABLE
        router.publish(make_table(generation=2 * turn + 3))


def test_nobody_waits_longer_than_the_deadline(start_router: Callable[..., Router], valkey: Valkey) -> None:
    router = start_router(load_deadline_s=0.2)
    router.publish(make_table())
    answer = router.complete(model=CANDIDATE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "load_timeout")
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["x-adapter-version"] == CANDIDATE
    assert wants(valkey) == [CANDIDATE]
    assert router.reported()[0]["status"] == 504


def test_a_version_that_no_replica_will_hold_is_told_at_once(
    start_router: Callable[..., Router], valkey: Valkey
) -> None:
    router = start_router()
    table = make_table()
    refused = replace(table.versions[CANDIDATE], refusal="It has rank 256; its clusters serve at most 64. Compress it.")
    router.publish(replace(table, versions={**table.versions, CANDIDATE: refused}))
    answer = router.complete(model=CANDIDATE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_servable")
    assert "at most 64" in answer.json()["error"]["message"]
    assert wants(valkey) == []


def test_who_waits_hears_that_every_replica_refused(start_router: Callable[..., Router], valkey: Valkey) -> None:
    router = start_router()
    router.publish(make_table())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(router.complete)
        wait_until(lambda: wants(valkey), what="a want")
        table = make_table(generation=2)
        refused = replace(table.versions[STABLE], refusal="Every replica refused it.")
        announce(valkey, replace(table, versions={**table.versions, STABLE: refused}))
        answer = waiting.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_servable")


def test_a_want_is_sent_when_valkey_is_back(
    start_router: Callable[..., Router], engine: Engine, valkey: Valkey
) -> None:
    router = start_router()
    router.publish(make_table())
    valkey.stop()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(router.complete)
        valkey.start()
        wait_until(lambda: wants(valkey), what="a want")
        announce(valkey, make_table(engine.url, generation=2))
        assert waiting.result().json()["model"] == STABLE


def test_a_cold_candidate_is_not_answered_by_stable(start_router: Callable[..., Router], engine: Engine) -> None:
    router = start_router(load_deadline_s=0.2)
    table = make_table(engine.url, weight=100)
    cold = replace(table.versions[CANDIDATE], replicas=())
    router.publish(replace(table, versions={**table.versions, CANDIDATE: cold}))
    answer = router.complete(user="me")
    assert (answer.status_code, answer.headers["x-rollout-arm"]) == (504, "candidate")
    assert engine.fake.received == []


def test_who_waits_for_what_the_alias_has_left_is_told_at_once(
    start_router: Callable[..., Router], engine: Engine, valkey: Valkey
) -> None:
    """Far before the deadline; the same request again is answered by what is served now."""
    router = start_router(load_deadline_s=600.0)
    router.publish(make_table())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(router.complete)
        wait_until(lambda: wants(valkey), what="a want")
        table = make_table(engine.url, generation=2, stable=CANDIDATE)
        cold = replace(table.versions[STABLE], replicas=())
        announce(valkey, replace(table, versions={**table.versions, STABLE: cold}))
        answer = waiting.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "alias_moved")
    assert answer.headers["retry-after"] == "1"
    assert router.complete().json()["model"] == CANDIDATE
