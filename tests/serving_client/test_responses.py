"""/v1/responses without a state, where the engine has it: the same way through the router as a chat."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.responses import StreamingResponse

from serving_client.protocol import Checks
from serving_client.router.reporting.response_checks import text_of
from serving_client.router.resolve import salt_of
from tests.fakes.routing import INFER, STABLE, make_table
from tests.fakes.stage import Engine, Router

IMAGE = {"type": "input_image", "image_url": "http://inside/secret.png"}


@pytest.fixture
def responding(router: Router, engine: Engine) -> Router:
    engine.fake.responds = True
    return router


def respond(router: Router, **body: Any) -> httpx.Response:
    return router.http.post("/v1/responses", headers=INFER, json={"model": "compliance", "input": "a"} | body)


def test_an_alias_responds(responding: Router, engine: Engine) -> None:
    answer = respond(responding, instructions="be short", text={"format": {"type": "text"}})
    assert answer.json()["output"][0]["content"][0]["text"] == " two words"
    assert answer.json()["model"] == answer.headers["x-adapter-version"] == STABLE
    ((body, _),) = engine.fake.received
    assert (body["model"], body["cache_salt"], body["store"]) == (STABLE, salt_of("eu"), False)
    (report,) = responding.reported()
    assert (report["status"], report["prompt_tokens"], report["completion_tokens"]) == (200, 3, 2)


def test_a_stream_is_measured(responding: Router, engine: Engine) -> None:
    answer = respond(responding, stream=True)
    assert answer.text.startswith("event: response.output_text.delta\n")
    assert "response.completed" in answer.text
    (report,) = responding.reported()
    assert (report["prompt_tokens"], report["completion_tokens"], report["tokens_estimated"]) == (3, 2, False)
    assert report["ttft_ms"] is not None


def test_a_failure_in_a_stream_is_no_success(responding: Router, engine: Engine) -> None:
    parts = ['event: error\ndata: {"type":"error","message":"died"}\n\n']
    engine.fake.script.append(StreamingResponse(iter(parts), media_type="text/event-stream"))
    respond(responding, stream=True)
    assert responding.reported()[0]["status"] == 502


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("text", "empty"), [(" words", False), ("", True)])
def test_its_text_is_checked(responding: Router, engine: Engine, stream: bool, text: str, empty: bool) -> None:
    checks = Checks(refusal="cannot")
    responding.publish(make_table(engine.url, generation=2, weight=50, checks=checks))
    engine.fake.words = {name: [text] for name in engine.fake.adapters}
    for number in range(20):
        respond(responding, stream=stream, user=f"user-{number}")
    judged = [report for report in responding.reported(20) if report["arm"] in ("candidate", "control")]
    assert {report["empty"] for report in judged} == {empty}


def test_an_engine_without_them_is_named(router: Router) -> None:
    answer = respond(router)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_responses")
    assert router.complete().status_code == 200, "it is no failure of the replica"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"previous_response_id": "resp_1"}, "field_not_allowed"),
        ({"conversation": "conv_1"}, "field_not_allowed"),
        ({"background": True}, "field_not_allowed"),
        ({"store": True}, "field_not_allowed"),
        ({"service_tier": "priority"}, "field_not_allowed"),
        ({"previous_response": {}}, "field_not_allowed"),
        ({"request_id": "r"}, "field_not_allowed"),
        ({"vllm_xargs": {}}, "field_not_allowed"),
        ({"messages": []}, "field_not_allowed"),
        ({"tools": [{"type": "mcp", "server_url": "http://inside"}]}, "tool_not_allowed"),
        ({"tools": [{"type": "code_interpreter"}]}, "tool_not_allowed"),
        ({"input": [{"role": "user", "content": [IMAGE]}]}, "address_not_allowed"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [IMAGE]}]}, "address_not_allowed"),
        ({"input": [{"role": "user", "content": [{"file_url": "http://inside"}]}]}, "address_not_allowed"),
        ({"input": [IMAGE]}, "address_not_allowed"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"pattern": "(a{999}){999}"}}}},
            "bad_pattern",
        ),
    ],
)
def test_what_an_engine_must_not_be_given(
    responding: Router, engine: Engine, fields: dict[str, Any], code: str
) -> None:
    answer = respond(responding, **fields)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert engine.fake.received == []


def test_calls_are_part_of_the_text() -> None:
    call = {"type": "function_call", "name": "look_up", "arguments": '{"a":1}'}
    assert text_of(json.dumps({"object": "response", "output": [call]}).encode()) == 'look_up{"a":1}'
    chat = {"choices": [{"message": {"content": None, "tool_calls": [{"function": call}]}}]}
    assert text_of(json.dumps(chat).encode()) == 'look_up{"a":1}'
