"""The response cache: who hits, who never does, and what is thrown away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from serving_client import CacheRule
from tests.fakes.engine import error
from tests.fakes.routing import CANDIDATE, FOREIGNER, INFER, STABLE, make_table
from tests.fakes.stage import Engine, Router
from tests.waiting import wait_until

RULE = CacheRule(ttl_s=60, max_bytes=10_000)


@pytest.fixture
def cached(router: Router, engine: Engine) -> Router:
    """`compliance` and `billing` are cached."""
    router.publish(make_table(engine.url, generation=2, cache=RULE))
    return router


def ask(router: Router, headers: dict[str, str] = INFER, /, **body: Any) -> str:
    """X-Cache of a greedy request."""
    return router.complete(headers, **({"temperature": 0} | body)).headers["x-cache"]


def fill(router: Router, **body: Any) -> None:
    """Ask until the answer comes from the cache."""
    wait_until(lambda: ask(router, **body) == "hit", what="a hit")


def stored(router: Router) -> list[bytes]:
    return [key for key in router.valkey.client.keys("ah:cache:*") if not key.endswith((b":index", b":bytes"))]


@pytest.mark.parametrize("body", [{"temperature": 0}, {"temperature": 0.0}, {"temperature": 1, "seed": 7}])
def test_a_repeatable_request_is_answered_again(cached: Router, engine: Engine, body: dict[str, Any]) -> None:
    first = cached.complete(INFER, **body)
    fill(cached, **body)
    request_count = len(engine.fake.received)
    second = cached.complete(INFER, **body)
    assert (second.status_code, second.content, second.headers["x-cache"]) == (200, first.content, "hit")
    assert second.headers["x-adapter-version"] == STABLE
    assert second.headers["x-response-id"] != first.headers["x-response-id"]
    assert len(engine.fake.received) == request_count


@pytest.mark.parametrize(
    "body", [{"temperature": 0.7}, {"temperature": None}, {"temperature": False}, {"seed": None, "temperature": 1}]
)
def test_what_an_engine_would_answer_otherwise_is_not_cached(cached: Router, body: dict[str, Any]) -> None:
    assert [ask(cached, **body) for _ in range(2)] == ["bypass"] * 2
    assert not stored(cached)


def test_an_alias_without_a_rule_is_not_cached(router: Router) -> None:
    assert [ask(router) for _ in range(2)] == ["bypass"] * 2


def test_other_requests_are_other_answers(cached: Router) -> None:
    fill(cached)
    assert ask(cached, prompt="b") == ask(cached, max_tokens=3) == "miss"
    assert (
        cached.http.post(
            "/v1/chat/completions", headers=INFER, json={"model": "compliance", "messages": [], "temperature": 0}
        ).headers["x-cache"]
        == "miss"
    )
    assert ask(cached, user="somebody") == "hit"


def test_a_stream_is_replayed(cached: Router, engine: Engine) -> None:
    first = cached.complete(INFER, stream=True, temperature=0)
    fill(cached, stream=True)
    request_count = len(engine.fake.received)
    again = cached.complete(INFER, stream=True, temperature=0)
    assert (again.text, again.headers["x-cache"]) == (first.text, "hit")
    assert again.headers["content-type"].startswith("text/event-stream")
    assert len(engine.fake.received) == request_count
    assert ask(cached) == "miss", "the same without a stream is another answer"


def test_a_stream_that_broke_is_not_kept(cached: Router, engine: Engine) -> None:
    engine.fake.breaks = True
    with pytest.raises(Exception, match="peer closed"):
        cached.complete(INFER, stream=True, temperature=0)
    cached.reported()
    assert not stored(cached)


def test_an_error_is_not_kept(cached: Router, engine: Engine) -> None:
    engine.fake.script.append(error(400, "BadRequestError", "no"))
    assert cached.complete(INFER, temperature=0).status_code == 400
    answer = cached.complete(INFER, temperature=0)
    assert (answer.status_code, answer.headers["x-cache"]) == (200, "miss")


def test_a_promotion_and_its_rollback_never_give_the_other_versions_answer(cached: Router, engine: Engine) -> None:
    fill(cached)
    for generation, version in ((3, CANDIDATE), (4, STABLE), (5, CANDIDATE)):
        cached.publish(make_table(engine.url, generation=generation, stable=version, cache=RULE))
        fill(cached)
        answer = cached.complete(INFER, temperature=0)
        assert answer.json()["model"] == answer.headers["x-adapter-version"] == version


def test_new_weights_under_an_old_name_miss(cached: Router, engine: Engine) -> None:
    fill(cached)
    table = make_table(engine.url, generation=3, cache=RULE)
    moved = table.versions[STABLE].__class__("eu", "tiny", "ff" * 32, (engine.url,))
    cached.publish(table.__class__(**{**table.__dict__, "versions": {**table.versions, STABLE: moved}}))
    assert ask(cached) == "miss"


@pytest.mark.threat("F2")
def test_another_project_never_hits(cached: Router) -> None:
    fill(cached)
    assert ask(cached, FOREIGNER, model="billing") == "miss"
    assert cached.complete(FOREIGNER, temperature=0).status_code == 404


def test_the_arms_of_a_rollout_are_measured_and_not_replayed(cached: Router, engine: Engine) -> None:
    fill(cached)
    cached.publish(make_table(engine.url, generation=3, weight=50, cache=RULE))
    assert [ask(cached, user=f"user-{number}") for number in range(5)] == ["bypass"] * 5


def test_without_valkey_every_request_is_a_miss(cached: Router) -> None:
    fill(cached)
    cached.valkey.stop()
    answers = [cached.complete(INFER, temperature=0) for _ in range(5)]
    assert [(answer.status_code, answer.headers["x-cache"]) for answer in answers] == [(200, "miss")] * 5
    cached.valkey.start()
    wait_until(lambda: ask(cached) == "hit", 60, "hits with the new Valkey")


def test_an_answer_lives_for_its_time(cached: Router, engine: Engine) -> None:
    fill(cached)
    (key,) = stored(cached)
    assert 0 < cached.valkey.client.ttl(key) <= RULE.ttl_s
    cached.valkey.client.expire(key, 0)
    assert ask(cached) == "miss"


def test_the_oldest_answers_make_room(cached: Router, engine: Engine, kept_bytes: Callable[[], int]) -> None:
    fill(cached)
    one = kept_bytes()
    cached.publish(make_table(engine.url, generation=3, cache=CacheRule(60, 3 * one)))
    for prompt in "bcde":
        fill(cached, prompt=prompt)
        assert kept_bytes() <= 3 * one
    assert len(stored(cached)) == 3
    assert ask(cached, prompt="e") == "hit"


def test_an_answer_over_the_cap_is_not_kept(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, cache=CacheRule(60, 20)))
    assert [ask(router) for _ in range(2)] == ["miss"] * 2
    assert not stored(router)


@pytest.fixture
def kept_bytes(cached: Router) -> Callable[[], int]:
    """What all stored answers weigh; the router's own sum must say the same."""

    def weigh() -> int:
        total = sum(cached.valkey.client.strlen(key) for key in stored(cached))
        assert total == int(cached.valkey.client.get("ah:cache:{eu:compliance}:bytes"))
        return total

    return weigh


def test_each_alias_has_its_own_time_and_bytes(cached: Router, engine: Engine) -> None:
    """The rule of one fills and empties nothing of the other's."""
    fill(cached)
    (first,) = stored(cached)
    table = make_table(engine.url, generation=3, cache=RULE)
    short = replace(
        table.aliases["us/billing"], cache=CacheRule(ttl_s=5, max_bytes=cached.valkey.client.strlen(first) + 20)
    )
    cached.publish(replace(table, aliases={**table.aliases, "us/billing": short}))
    for prompt in "ab":
        wait_until(lambda prompt=prompt: ask(cached, FOREIGNER, model="billing", prompt=prompt) == "hit", what="a hit")
    times = {key: cached.valkey.client.ttl(key) for key in stored(cached)}
    assert len(times) == 2, "billing has room for one"
    assert times.pop(first) > 5
    assert 0 <= times.popitem()[1] <= 5


def test_a_hit_is_reported_as_one(cached: Router) -> None:
    fill(cached)
    reports = cached.reported(2)
    assert {report["cache"] for report in reports} == {"miss", "hit"}
    assert all(report["completion_tokens"] == 2 for report in reports)
