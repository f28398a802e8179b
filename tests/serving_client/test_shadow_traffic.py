"""Answers that are judged, and a candidate that is asked unseen: after the reader has the answer."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from starlette.responses import JSONResponse

from serving_client import Checks, RoutingTable
from serving_client.router.reporting.response_checks import judged, text_of
from tests.fakes.routing import CANDIDATE, INFER, STABLE, make_table
from tests.fakes.stage import Engine, Router
from tests.waiting import wait_until


def answer(text: str, status: int = 200) -> JSONResponse:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return JSONResponse({"choices": [{"index": 0, "text": text}], "usage": usage}, status)


def shadow_of(router: Router) -> dict[str, Any]:
    """The report of the pair that nobody saw."""

    def shadows() -> list[dict[str, Any]]:
        return [report for report in router.reports() if report["arm"] == "shadow"]

    wait_until(shadows, what="the shadow's report")
    return shadows()[0]


@pytest.mark.parametrize("streams", [False, True])
def test_the_candidate_is_asked_the_same_and_nobody_sees_it(router: Router, engine: Engine, streams: bool) -> None:
    router.publish(make_table(engine.url, generation=2, weight=0, shadow=100))
    answer = router.complete(INFER | {"X-Session-Key": "me"}, stream=streams, stream_options={"include_usage": True})
    assert (answer.headers["x-adapter-version"], answer.headers["x-rollout-arm"]) == (STABLE, "stable")
    shadow = shadow_of(router)
    bodies = [body for body, _ in engine.fake.received]
    assert [body["model"] for body in bodies] == [STABLE, CANDIDATE]
    assert bodies[1]["prompt"] == bodies[0]["prompt"]
    assert "stream_options" in bodies[0]
    assert "stream_options" not in bodies[1] or not streams
    assert (shadow["version"], shadow["status"], shadow["differs"]) == (CANDIDATE, 200, False)
    assert shadow["mirrored"]["status"] == 200
    assert shadow["response_id"] != answer.headers["x-response-id"]


def test_another_answer_is_noticed_and_a_failing_shadow_hurts_nobody(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, weight=0, shadow=100))
    engine.fake.script.extend([answer("yes"), answer("no")])
    assert router.complete(user="me").json()["choices"][0]["text"] == "yes"
    assert shadow_of(router)["differs"] is True
    engine.fake.script.extend([answer("yes"), answer("", 500)])
    assert router.complete(user="me").status_code == 200
    wait_until(lambda: {502} <= {report["status"] for report in router.reports()}, what="the failure's report")


def test_without_a_user_nothing_is_asked_twice(router: Router, engine: Engine) -> None:
    """Whose answers they are is unknown: they could not count."""
    router.publish(make_table(engine.url, generation=2, weight=0, shadow=100))
    router.complete()
    router.reported()
    assert len(engine.fake.received) == 1


def test_without_a_shadow_step_nothing_is_asked_twice(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, weight=0))
    router.complete()
    router.reported()
    assert len(engine.fake.received) == 1


CHECKS = Checks(refusal=r"(?i)\bI cannot\b", format=r"^\{", schema={"type": "object", "required": ["total"]})


@pytest.mark.parametrize(
    ("text", "hints"),
    [
        ('{"total": 3}', {"empty": False, "refusal": False, "format_failure": False}),
        ('{"sum": 3}', {"empty": False, "refusal": False, "format_failure": True}),
        ("I cannot help with that.", {"empty": False, "refusal": True, "format_failure": True}),
        (" \n", {"empty": True, "refusal": False, "format_failure": True}),
    ],
)
def test_a_text_is_held_to_its_checks(text: str, hints: dict[str, bool]) -> None:
    assert judged(CHECKS, text) == hints


def test_a_pattern_that_no_engine_takes_says_nothing() -> None:
    """One from before the routers had a linear engine."""
    assert judged(Checks(refusal=r"(?<!I )cannot"), "I cannot") == {"empty": False}


@pytest.mark.parametrize(
    "content",
    [
        b'{"choices": [{"message": {"content": "a b"}}]}',
        b'data: {"choices": [{"text": "a"}]}\n\ndata: {"choices": [{"text": " b"}]}\n\ndata: [DONE]\n\n',
        b'data: {"choices": [{"delta": {"content": "a b"}}]}\n\ndata: {"choices": [], "usage": {}}\n\n',
        b'data:{"choices": [{"text": "a"}]}\r\n\r\ndata:{"choices": [{"text": " b"}]}\r\n\r\ndata:[DONE]\r\n\r\n',
    ],
)
def test_a_text_is_found_in_every_form(content: bytes) -> None:
    assert text_of(content) == "a b"
    assert (text_of(b"no json"), text_of(b"[]"), text_of(b'{"choices": [{}]}')) == ("", "", "")


def test_a_measured_answer_is_judged_and_the_reader_waits_for_nothing(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, weight=50, checks=Checks(refusal="cannot")))
    engine.fake.script.append(answer("I cannot"))
    router.complete(user="somebody")
    [outcome] = router.reported()
    assert (outcome["refusal"], outcome["empty"], outcome["format_failure"]) == (True, False, None)


def test_listed_units_have_their_side_and_are_not_measured(router: Router, engine: Engine) -> None:
    pinned = {hashlib.sha256(b"tester").hexdigest(): "candidate", hashlib.sha256(b"bank").hexdigest(): "stable"}
    router.publish(make_table(engine.url, generation=2, weight=50, pinned=pinned))
    for unit, version in (("tester", CANDIDATE), ("bank", STABLE)):
        answered = router.complete(user=unit)
        assert answered.headers["x-adapter-version"] == version
        assert "x-rollout-sticky" not in answered.headers
    assert [report["counted"] for report in router.reported(2)] == [False, False]


def test_the_holdout_is_touched_by_no_rollout(router: Router, engine: Engine) -> None:
    """The same units whatever the rollout's salt, about as many as promised, out of the statistics."""
    router.publish(make_table(engine.url, generation=2, weight=50, holdout=50))
    arms = {user: router.complete(user=f"user-{user}").headers["x-rollout-arm"] for user in range(60)}
    held_out = [user for user, arm in arms.items() if arm == "stable"]
    assert 15 < len(held_out) < 45
    assert {report["counted"] for report in router.reported(60) if report["arm"] == "stable"} == {False}


def test_the_table_brings_all_of_it_over_the_wire() -> None:
    table = make_table("http://r", weight=1, shadow=5, holdout=2, pinned={"ab": "stable"}, checks=CHECKS)
    assert RoutingTable.from_json(table.to_json()) == table
