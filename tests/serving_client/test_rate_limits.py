"""Rate limits: one bucket for all routers, a bucket of one's own without Valkey."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_client import RateLimit
from serving_client.rate_limiter import Bucket
from tests.fakes.routing import FOREIGNER, INFER, make_table
from tests.fakes.stage import Engine, Router

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
