"""Tokens of streams: measured for clients that do not ask for them, who see none."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from starlette.responses import Response, StreamingResponse

from serving_client import CacheRule
from serving_client.router.http.stream_usage import StreamReader, visible
from tests.fakes.engine import event
from tests.fakes.routing import INFER, STABLE, make_table
from tests.fakes.stage import Engine, Router
from tests.waiting import wait_until

CHAT = {"model": "compliance", "messages": [{"role": "user", "content": "eight letters"}], "stream": True}
COMPLETION = {"model": "compliance", "prompt": "eight letters", "stream": True}


def streamed(router: Router, body: dict[str, Any]) -> httpx.Response:
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    return router.http.post(path, headers=INFER, json=body)


def counts(router: Router) -> tuple[int, int, bool]:
    report = router.reported()[0]
    return report["prompt_tokens"], report["completion_tokens"], report["tokens_estimated"]


@pytest.mark.parametrize("body", [CHAT, COMPLETION])
@pytest.mark.parametrize("options", [{}, {"stream_options": None}, {"stream_options": {"include_usage": False}}])
def test_a_stream_is_measured_for_a_client_that_does_not_ask(
    router: Router, engine: Engine, body: dict[str, Any], options: dict[str, Any]
) -> None:
    answer = streamed(router, body | options)
    assert counts(router) == (3, 2, False)
    assert engine.fake.received[0][0]["stream_options"] == {"include_usage": True}
    assert "usage" not in answer.text
    assert answer.text.count("data: {") == 2
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_client_that_asks_sees_the_counts(router: Router, engine: Engine) -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": False}}
    answer = streamed(router, CHAT | options)
    assert counts(router) == (3, 2, False)
    assert engine.fake.received[0][0]["stream_options"] == options["stream_options"]
    assert answer.text.count('"usage"') == 1


def test_counts_beside_a_text_are_hidden_and_the_text_is_not(router: Router, engine: Engine) -> None:
    engine.fake.counts = "inline"
    answer = streamed(router, CHAT | {"stream_options": {"continuous_usage_stats": True}})
    assert "usage" not in answer.text
    assert "two" in answer.text
    assert "words" in answer.text
    assert engine.fake.received[0][0]["stream_options"] == {"include_usage": True}
    assert counts(router) == (3, 2, False)


@pytest.mark.parametrize("how", ["never", "refused"])
@pytest.mark.parametrize("body", [CHAT, COMPLETION])
def test_where_an_engine_does_not_count_the_router_estimates_and_says_so(
    router: Router, engine: Engine, how: str, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    engine.fake.counts = how
    assert streamed(router, body).text.endswith("data: [DONE]\n\n")
    assert counts(router) == (4, 2, True)
    assert f"The engine of {STABLE} sends no counts of tokens" in caplog.text
    assert len(engine.fake.received) == (2 if how == "refused" else 1)


def test_a_whole_answer_without_counts_is_estimated(router: Router, engine: Engine) -> None:
    engine.fake.script.append(Response(json.dumps({"choices": [{"index": 0, "text": " nine more"}]})))
    router.complete(prompt=[1, 2, 3])
    assert counts(router) == (3, 3, True)


def test_counts_before_much_else_are_read(router: Router, engine: Engine) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    engine.fake.script.append(Response(json.dumps({"choices": [], "usage": usage, "prompt_token_ids": [7] * 4096})))
    router.complete()
    assert counts(router) == (3, 2, False)


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_several_answers_are_counted_together(router: Router, engine: Engine, options: dict[str, Any]) -> None:
    parts = [event({"choices": [{"index": place, "text": " word"}]}) for place in (0, 1, 1)]
    usage = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 7}})
    events = [*parts, usage, "data: [DONE]\n\n"]
    engine.fake.script.append(StreamingResponse(iter(events), media_type="text/event-stream"))
    answer = streamed(router, COMPLETION | {"n": 2} | options)
    assert counts(router) == (3, 7, False)
    assert answer.text.count('"usage"') == len(options)
    engine.fake.script.append(StreamingResponse(iter([*events[:3], events[4]]), media_type="text/event-stream"))
    streamed(router, COMPLETION | {"n": 2} | options)
    report = router.reported(2)[1]
    assert (report["completion_tokens"], report["tokens_estimated"]) == (3, True)


@pytest.mark.parametrize("how", ["asked", "inline"])
def test_who_leaves_in_the_midst_is_charged_for_what_was_written(
    router: Router, engine: Engine, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever always leaves before the end would else use an engine for nothing."""
    engine.fake.counts = how
    engine.fake.gate.clear()
    with router.http.stream("POST", "/v1/chat/completions", headers=INFER, json=CHAT) as answer:
        next(answer.iter_text())
    report = router.reported()[0]
    engine.fake.gate.set()
    written = (4, 1, True) if how == "asked" else (3, 2, False)
    assert (report["prompt_tokens"], report["completion_tokens"], report["tokens_estimated"]) == written
    assert report["status"] == 499
    assert "sends no counts" not in caplog.text


def test_an_empty_stream_is_empty(router: Router, engine: Engine) -> None:
    engine.fake.words[STABLE] = []
    streamed(router, CHAT)
    assert counts(router) == (3, 0, False)


@pytest.mark.parametrize(("code", "status"), [(500, 500), (400, 400), (None, 502)])
def test_an_error_in_a_stream_is_no_success(router: Router, engine: Engine, code: int | None, status: int) -> None:
    parts = [event({"error": {"message": "died", "type": "InternalServerError", "code": code}}), "data: [DONE]\n\n"]
    engine.fake.script.append(StreamingResponse(iter(parts), media_type="text/event-stream"))
    assert "died" in streamed(router, CHAT).text
    assert router.reported()[0]["status"] == status


def test_a_stream_from_the_cache_has_the_counts_of_the_first(router: Router, engine: Engine) -> None:
    router.publish(make_table(engine.url, generation=2, cache=CacheRule(60, 10_000)))
    first = streamed(router, CHAT | {"temperature": 0})
    wait_until(lambda: router.valkey.client.keys("ah:cache:*"), what="the answer to be stored")
    second = streamed(router, CHAT | {"temperature": 0})
    assert second.headers["x-cache"] == "hit"
    assert second.content == first.content
    assert [report["completion_tokens"] for report in router.reported(2)] == [2, 2]


STREAM = (
    b'data: {"choices":[{"index":0,"delta":{"content":"\\"usage\\": {\\"completion_tokens\\": 9}"}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}],"usage":null}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}}\n\n'
    b": a comment\n\ndata: [DONE]\n\n"
)


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 10_000])
def test_wherever_the_chunks_are_cut_the_client_sees_the_same(size: int, line_end: bytes) -> None:
    content = STREAM.replace(b"\n", line_end)
    reader, seen = StreamReader(hides_usage=True), b""
    for start in range(0, len(content), size):
        seen += reader.read(content[start : start + size])
    events = content.split(line_end * 2)
    assert seen + reader.end() == (line_end * 2).join([*events[:2], *events[3:]]) == visible(content)
    assert reader.usage is not None
    assert (reader.usage.prompt_tokens, reader.usage.completion_tokens, reader.parts) == (5, 2, 1)


def test_an_event_without_end_is_not_held() -> None:
    reader = StreamReader(hides_usage=True)
    seen = b"".join(reader.read(b"a" * 2**18) for _ in range(8))
    assert len(seen) >= 2**20
