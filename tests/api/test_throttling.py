"""A flood: 429 with the time to come again, for one caller and nobody else, whose work goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import LazySettings
from django.test import Client

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.api import throttling
from adapterhub.embedded.valkey import EmbeddedValkey
from tests.builders.rest import client, problem

A_BURST = 2


@pytest.fixture(autouse=True)
def two_after_a_rest(settings: LazySettings, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two calls, then one in 100 s: no test takes so long that one comes."""
    settings.API_REQUESTS_PER_S = settings.STRANGER_REQUESTS_PER_S = 0.01
    monkeypatch.setattr(throttling, "BURST_S", 200)
    throttling.buckets.cache_clear()
    yield
    throttling.buckets.cache_clear()


def statuses(api: Any, count: int) -> list[int]:
    return [api.get("/api/v1/projects/").status_code for _ in range(count)]


@pytest.mark.threat("D1")
def test_a_token_that_floods_is_told_when_to_come_again(ci: str) -> None:
    assert statuses(client(ci), A_BURST) == [200, 200]
    answer = client(ci).get("/api/v1/projects/")
    assert "Each token may send" in problem(answer, 429, "throttled")["detail"]
    assert 90 <= int(answer["Retry-After"]) <= 100


def test_every_answer_tells_what_is_left(ci: str) -> None:
    answers = [client(ci).get("/api/v1/projects/") for _ in range(A_BURST + 1)]
    assert [answer["RateLimit"].split(";")[1] for answer in answers] == ["r=1", "r=0", "r=0"]
    assert {answer["RateLimit-Policy"] for answer in answers} == {'"caller";q=2;w=200'}
    assert 90 <= int(answers[0]["RateLimit"].partition("t=")[2]) <= 100


@pytest.mark.threat("D1")
def test_a_flood_of_one_caller_takes_nothing_from_another(ci: str, alice: User, project: Project) -> None:
    _, other = ApiToken.issue(name="other", project=project, scopes=["read"], created_by=alice)
    browser = Client()
    browser.force_login(alice)
    assert statuses(client(ci), 4)[-1] == 429
    assert statuses(client(other), 1) == statuses(browser, 1) == [200]
    assert statuses(browser, 4)[-1] == 429


@pytest.mark.threat("D1")
def test_strangers_are_counted_by_their_address(db: None, ci: str) -> None:
    guesses = [client(f"ah_{number}_x").get("/api/v1/projects/").status_code for number in range(4)]
    assert guesses == [401, 401, 429, 429]
    assert client().get("/api/schema/").status_code == 429
    assert client(REMOTE_ADDR="10.9.8.7").get("/api/v1/projects/").status_code == 401
    assert statuses(client(ci), 1) == [200]


@pytest.mark.threat("C1")
def test_sign_ins_from_one_address_are_counted_whatever_the_name(db: None) -> None:
    tries = [Client().post("/login/", {"username": f"n{number}", "password": "x"}) for number in range(4)]
    assert [answer.status_code for answer in tries] == [200, 200, 429, 429]
    assert 0 < int(tries[-1]["Retry-After"]) <= 100


def test_a_refused_post_leaves_its_key_free(ci: str, settings: LazySettings) -> None:
    api = client(ci, HTTP_IDEMPOTENCY_KEY="flood-1")
    statuses(client(ci), A_BURST)
    body = {"project": "eu", "name": "bot", "scopes": ["read"]}
    problem(api.post("/api/v1/tokens/", body), 429, "throttled")
    settings.API_REQUESTS_PER_S = 0
    assert api.post("/api/v1/tokens/", body).status_code == 201


def test_two_processes_share_one_bucket(settings: LazySettings) -> None:
    first, second = throttling.Buckets(settings.REDIS_URL), throttling.Buckets(settings.REDIS_URL)
    limit = throttling.RateLimit(0.01, 3)
    assert [bucket.take("token:a", limit).left for bucket in (first, second, first)] == [2, 1, 0]
    assert 0 < second.take("token:a", limit).wait_s <= 100


def test_without_valkey_a_process_counts_alone() -> None:
    alone = throttling.Buckets("unix:///nowhere/valkey.sock")
    limit = throttling.RateLimit(0.01, 3)
    assert [alone.take("token:a", limit).left for _ in range(3)] == [2, 1, 0]
    assert 0 < alone.take("token:a", limit).wait_s <= 100


def test_addresses_without_end_take_a_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttling, "MOST_BUCKETS_HERE", 10)
    alone = throttling.Buckets("unix:///nowhere/valkey.sock")
    for number in range(100):
        alone.take(f"address:{number}", throttling.RateLimit(1, 1))
    assert len(alone._here) <= 10
