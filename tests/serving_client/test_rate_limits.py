"""Rate limits: one bucket for all routers, a bucket of one's own without Valkey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_client import RateLimit, Share
from serving_client.rate_limiter import Bucket
from tests.fakes.routing import FOREIGNER, INFER, make_table
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


def publish_share(router: Router, engine: Engine, share: Share) -> None:
    """The versions of project eu are served by a cluster that grants it this share."""
    table = make_table(engine.url, generation=2)
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
        wait_until(lambda left=left: round(level(router)) == left, what="the charge")
    require_exceeded(router)


def level(router: Router) -> float:
    return float(router.valkey.client.hget("ah:share-tokens:7/eu", "level") or 0)
