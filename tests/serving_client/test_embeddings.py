"""Embeddings, where the engine has them: the same way through the router as a completion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

from serving_client.router.resolve import salt_of
from tests.fakes.routing import CANDIDATE, INFER, STABLE, make_table
from tests.fakes.server import closed_url
from tests.fakes.stage import Engine, Router


def embedded(router: Router, headers: dict[str, str] = INFER, /, **body: Any) -> httpx.Response:
    return router.http.post("/v1/embeddings", headers=headers, json={"model": "compliance", "input": "a"} | body)


def test_an_alias_gives_embeddings(router: Router, engine: Engine) -> None:
    engine.fake.embeds = True
    answer = embedded(router)
    assert answer.json()["data"][0]["embedding"] == [0.5, -0.5]
    assert answer.json()["model"] == answer.headers["x-adapter-version"] == STABLE
    ((body, _),) = engine.fake.received
    assert body == {"model": STABLE, "input": "a", "cache_salt": salt_of("eu")}
    (report,) = router.reported()
    assert (report["status"], report["version"], report["prompt_tokens"]) == (200, STABLE, 3)


def test_an_engine_without_them_is_said(router: Router) -> None:
    answer = embedded(router)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_embeddings")
    assert router.complete().status_code == 200, "it is no failure of the replica"


def test_a_replica_that_lost_the_version_is_passed_over(
    start_router: Callable[..., Router], start_engine: Callable[..., Engine]
) -> None:
    lost, holds = start_engine("other"), start_engine()
    lost.fake.embeds = holds.fake.embeds = True
    router = start_router()
    router.publish(make_table(lost.url, holds.url, closed_url()))
    assert {embedded(router).status_code for _ in range(5)} == {200}


def test_a_token_is_needed_and_the_arm_is_sticky(router: Router, engine: Engine) -> None:
    assert embedded(router, {}).status_code == 401
    engine.fake.embeds = True
    router.publish(make_table(engine.url, generation=2, weight=100, shadow=100))
    answer = embedded(router, user="me")
    assert (answer.headers["x-rollout-arm"], answer.headers["x-adapter-version"]) == ("candidate", CANDIDATE)
