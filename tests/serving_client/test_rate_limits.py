"""Rate limits of projects, shares and tokens: one bucket for all routers, a bucket of one's own without Valkey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_client import RateLimit, Share
from serving_client.rate_limiter import Bucket
from tests.fakes.routing import FOREIGNER, INFER, OPERATE, make_table
from tests.fakes.stage import Engine, Router
from tests.waiting import wait_until

# A token in 100 s: no test takes so long that one comes.
SLOW = RateLimit(0.01, 3)


@pytest.fixture
def limited(router: Router, engine: Engine) -> Router:
    router.publish(make_table(engine.url, generation=2, limits={"eu": SLOW}))
    return router


def statuses(router: Router, count: int) -> list[int]:
    return [router.complete().status_code for _ in range(count)]


def test_over_the_limit_429_says_when_to_come_again(limited: Router, engine: Engine) -> None:
    assert statuses(limited, 3) == [200] * 3
    answer = limited.complete()
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 0 < int(answer.headers["retry-after"]) <= 100
    assert len(engine.fake.received) == 3


@pytest.mark.threat("D1")
def test_a_busy_project_takes_nothing_from_another(limited: Router) -> None:
    statuses(limited, 4)
    assert limited.complete(FOREIGNER, model="billing").status_code == 200


def test_two_routers_share_one_bucket(limited: Router, start_router: Callable[..., Router]) -> None:
    other = start_router()
    assert statuses(limited, 2) + statuses(other, 2) == [200, 200, 200, 429]


def test_without_valkey_a_router_counts_alone(limited: Router) -> None:
    statuses(limited, 4)
    limited.valkey.stop()
    assert statuses(limited, 4) == [200, 200, 200, 429]


def test_models_and_health_are_not_counted(limited: Router) -> None:
    statuses(limited, 4)
    assert limited.http.get("/v1/models", headers=INFER).status_code == 200


@given(st.floats(0.01, 1000), st.floats(1, 100), st.lists(st.floats(0, 10), max_size=200))
def test_no_bucket_gives_more_than_its_rate(per_s: float, burst: float, pauses: list[float]) -> None:
    limit, now, granted = RateLimit(per_s, burst), 0.0, 0
    bucket = Bucket(limit, now)
    for pause in pauses:
        now += pause
        granted += bucket.take(limit, now) == 0
    assert granted <= burst + now * per_s + 1e-6


def test_a_bucket_names_the_time_of_its_next_token() -> None:
    limit = RateLimit(2, 1)
    bucket = Bucket(limit, 0)
    assert (bucket.take(limit, 0), bucket.take(limit, 0.25), bucket.take(limit, 0.5)) == (0, 0.25, 0)


def publish_share(router: Router, engine: Engine, share: Share, **limits: Any) -> None:
    """The versions of project eu are served by a cluster that grants it this share."""
    table = make_table(engine.url, generation=2, **limits)
    own = {name: route for name, route in table.versions.items() if route.project == "eu"}
    versions = {**table.versions, **{name: replace(route, share="7/eu") for name, route in own.items()}}
    router.publish(replace(table, versions=versions, shares={"7/eu": share}))


def require_exceeded(router: Router) -> None:
    refused = router.complete()
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "share_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    assert router.complete(FOREIGNER, model="billing").status_code == 200


def test_a_share_of_requests_is_kept_to(router: Router, engine: Engine) -> None:
    publish_share(router, engine, Share(requests_per_s=0.01))
    assert statuses(router, 1) == [200]
    require_exceeded(router)


def test_a_share_of_tokens_is_charged_with_what_answers_took(router: Router, engine: Engine) -> None:
    publish_share(router, engine, Share(tokens_per_min=6))
    for left in (1, -4):
        assert router.complete().status_code == 200, "it has 5 tokens"
        wait_until(lambda left=left: round(level(router, "ah:share-tokens:7/eu")) == left, what="the charge")
    require_exceeded(router)


def level(router: Router, bucket: str) -> float:
    return float(router.valkey.client.hget(bucket, "level") or 0)


def publish_token(router: Router, engine: Engine, its: Share, **table: Any) -> None:
    """One of the project's two tokens has these limits."""
    published = make_table(engine.url, generation=2, **table)
    limited = replace(published.tokens["infer0000000"], id="infer0000000", limits=its)
    router.publish(replace(published, tokens={**published.tokens, "infer0000000": limited}))


def require_limited(router: Router, limit: str) -> None:
    refused = router.complete()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "token_limit_exceeded", "rate_limit_error")
    assert error["message"].startswith(f"The token ah_infer0000000 is limited to {limit}")
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    assert router.complete(OPERATE).status_code == 200, "another token of the project goes on"


def test_a_tokens_requests_are_limited_at_all_routers(
    router: Router, engine: Engine, start_router: Callable[..., Router]
) -> None:
    publish_token(router, engine, Share(requests_per_s=0.01))
    other = start_router()
    wait_until(lambda: other.generation() == 2, what="the other router to take the table")
    assert (statuses(other, 1), len(engine.fake.received)) == ([200], 1)
    require_limited(router, "0.01 requests a second")
    assert router.complete(model="nowhere").status_code == 429, "refused before the body is read"
    assert router.http.get("/v1/models", headers=INFER).status_code == 200


def test_what_a_token_may_not_send_is_not_taken_from_its_project(router: Router, engine: Engine) -> None:
    publish_token(router, engine, Share(requests_per_s=0.01), limits={"eu": SLOW})
    assert statuses(router, 6) == [200, *[429] * 5]
    assert [router.complete(OPERATE).status_code for _ in range(3)] == [200, 200, 429]


def test_a_tokens_tokens_are_charged_with_what_answers_took(router: Router, engine: Engine) -> None:
    publish_token(router, engine, Share(tokens_per_min=6))
    for left in (1, -4):
        assert router.complete(stream=left == 1).status_code == 200
        wait_until(lambda left=left: round(level(router, "ah:token-tokens:infer0000000")) == left, what="the charge")
    require_limited(router, "6 tokens a minute")


def test_without_valkey_a_router_counts_a_token_alone(router: Router, engine: Engine) -> None:
    publish_token(router, engine, Share(tokens_per_min=6))
    router.valkey.stop()
    assert statuses(router, 3) == [200, 200, 429]


def require_project_over(router: Router, words: str) -> None:
    refused = router.complete(OPERATE)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (429, "rate_limited"), "whichever of its tokens"
    assert error["message"].startswith(f"The project eu may take {words}")
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    assert router.complete(FOREIGNER, model="billing").status_code == 200


def test_a_projects_tokens_are_charged_with_what_answers_took(
    router: Router, engine: Engine, start_router: Callable[..., Router]
) -> None:
    router.publish(make_table(engine.url, generation=2, tokens_per_min={"eu": 6}))
    other = start_router()
    wait_until(lambda: other.generation() == 2, what="the other router to take the table")
    for left in (1, -4):
        assert other.complete(stream=left == 1).status_code == 200
        wait_until(lambda left=left: round(level(router, "ah:project-tokens:eu")) == left, what="the charge")
    require_project_over(router, "6 tokens a minute")


def test_without_valkey_a_router_counts_a_projects_tokens_alone(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, tokens_per_min={"eu": 6}))
    router.valkey.stop()
    assert statuses(router, 3) == [200, 200, 429]


@pytest.mark.parametrize(("own", "granted", "code"), [(6, 6000, "rate_limited"), (6000, 6, "share_exceeded")])
def test_of_a_projects_limit_and_its_share_the_lower_holds(
    router: Router, engine: Engine, own: int, granted: int, code: str
) -> None:
    publish_share(router, engine, Share(tokens_per_min=granted), tokens_per_min={"eu": own})
    for _ in range(2):
        assert router.complete().status_code == 200
    lower = "ah:project-tokens:eu" if own < granted else "ah:share-tokens:7/eu"
    wait_until(lambda: round(level(router, lower)) == -4, what="the charges")
    assert router.complete().json()["error"]["code"] == code
