"""Which version answers, and how the caller is told."""

from __future__ import annotations

import hashlib

import pytest

from serving_client import arm_of
from tests.fakes.routing import CANDIDATE, INFER, OPERATE, SALT, STABLE, make_table
from tests.fakes.stage import Engine, Router


@pytest.mark.parametrize("name", ["compliance", "dora", STABLE])
def test_alias_adapter_and_served_name(router: Router, engine: Engine, name: str) -> None:
    for answer in (router.complete(model=name), router.complete(INFER | {"X-Adapter-ID": name}, model="gpt-4")):
        assert answer.headers["x-adapter-version"] == answer.json()["model"] == STABLE
    assert [body["model"] for body, _ in engine.fake.received] == [STABLE, STABLE]


def test_the_engine_gets_the_body_and_nothing_of_the_caller(router: Router, engine: Engine) -> None:
    body = {"prompt": "é\u2028", "temperature": 0.5, "logit_bias": {"5": -1}, "metadata": {"a": [None]}}
    answer = router.complete(INFER | {"Cookie": "a=b", "X-Session-Key": "me"}, **body)
    received, headers = engine.fake.received[0]
    assert received.pop("cache_salt"), "the engine's prefix cache is this project's alone"
    assert received == body | {"model": STABLE}
    assert headers.keys().isdisjoint({"authorization", "cookie", "x-session-key", "accept-encoding"})
    assert headers["x-request-id"] == answer.headers["x-response-id"]


def test_chat_goes_to_chat(router: Router, engine: Engine) -> None:
    messages = [{"role": "user", "content": "a"}]
    answer = router.http.post("/v1/chat/completions", headers=INFER, json={"model": "dora", "messages": messages})
    assert answer.is_success
    assert engine.fake.received[0][0]["messages"] == messages


def test_without_a_rollout_there_is_no_arm(router: Router) -> None:
    answers = [router.complete(), router.complete()]
    for answer in answers:
        assert answer.headers["x-rollout-arm"] == "none"
        assert answer.headers["x-cache"] == "bypass"
        assert "x-rollout-sticky" not in answer.headers
    assert len({answer.headers["x-response-id"] for answer in answers}) == 2


def test_the_arm_is_that_of_the_function(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, weight=30))
    for number in range(30):
        user = f"user-{number}"
        expected = arm_of(SALT, user, 30)
        for answer in (router.complete(user=user), router.complete(INFER | {"X-Session-Key": user}, user="other")):
            assert answer.headers["x-rollout-arm"] == expected
            assert answer.headers["x-adapter-version"] == (CANDIDATE if expected == "candidate" else STABLE)
            assert answer.json()["model"] == answer.headers["x-adapter-version"]
            assert "x-rollout-sticky" not in answer.headers


def test_without_a_unit_the_arm_is_random(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, weight=50))
    answers = [router.complete() for _ in range(40)]
    assert {answer.headers["x-rollout-arm"] for answer in answers} == {"candidate", "control"}
    assert {answer.headers["x-rollout-sticky"] for answer in answers} == {"false"}


@pytest.mark.parametrize(("override", "version"), [("candidate", CANDIDATE), ("stable", STABLE)])
def test_an_operator_chooses(router: Router, engine: Engine, override: str, version: str) -> None:
    router.publish(make_table(engine.url, generation=2, weight=50))
    for user in ("a", "b", "c", "d"):
        answer = router.complete(OPERATE | {"X-Rollout-Override": override}, user=user)
        assert answer.headers["x-adapter-version"] == version
        assert answer.headers["x-rollout-arm"] == override
        assert answer.headers["x-rollout-sticky"] == "false"


def test_others_do_not_choose(router: Router) -> None:
    refused = router.complete(INFER | {"X-Rollout-Override": "candidate"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "scope_missing")
    refused = router.complete(OPERATE | {"X-Rollout-Override": "both"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "bad_override")


def test_the_report_says_what_answered(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, weight=50))
    answer = router.complete(user="someone")
    report = router.reported()[0]
    times = {name: report.pop(name) for name in ("at", "total_ms")}
    assert report == {
        "response_id": answer.headers["x-response-id"],
        "project": "eu",
        "alias": "compliance",
        "version": answer.headers["x-adapter-version"],
        "arm": answer.headers["x-rollout-arm"],
        "sticky": True,
        "unit": hashlib.sha256(b"someone").hexdigest(),
        "status": 200,
        "ttft_ms": None,
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "cache": "bypass",
        "cold": False,
        "counted": True,
        "tokens_estimated": False,
        **dict.fromkeys(("empty", "refusal", "format_failure", "differs", "mirrored")),
    }
    assert all(seconds > 0 for seconds in times.values())
    assert "someone" not in str(report)
