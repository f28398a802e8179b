"""Prompts that are too long and callers that leave: neither holds up the others, and nothing is computed for nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving_client import VersionRoute
from serving_client.engine.api.app import create_app
from serving_client.engine.engine import Engine, Limits
from serving_client.engine.model import BaseModel, open_model
from tests.byte_llama import save_model
from tests.fakes.routing import INFER, STABLE, make_table
from tests.fakes.server import Server
from tests.fakes.stage import Router, running_engine, running_router, running_valkey
from tests.waiting import wait_until

WATCH = {"Authorization": "Bearer watch"}

HUGE = "The bank shall report. " * 170_000


def tool(description: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "a", "description": description, "parameters": {}}}


def call(arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "a", "arguments": arguments}}


ENDLESS = {"max_tokens": 900, "ignore_eos": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return open_model(str(save_model(tmp_path_factory.mktemp("base"))), 1024)


@asynccontextmanager
async def served(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(engine)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://e") as http:
        yield http


@pytest.mark.threat("D17")
@pytest.mark.parametrize(
    ("path", "prompt"),
    [
        ("/v1/completions", {"prompt": HUGE}),
        ("/v1/completions", {"prompt": [1] * 1_500_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": HUGE}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 4_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [tool(HUGE)]}),
    ],
)
async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_read(
    base: BaseModel, path: str, prompt: dict[str, Any]
) -> None:
    async with served(Engine("tiny", base, Limits())) as http:
        began = time.process_time()
        answer = await http.post(path, json={"model": "tiny", **prompt})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_tokens")
        assert "maximum context length is 1024 tokens" in answer.json()["error"]["message"]
        assert time.process_time() - began < 1


@pytest.mark.threat("D17")
@pytest.mark.slow
async def test_tokenising_a_long_prompt_holds_nobody_up(base: BaseModel) -> None:
    """A context of a million tokens, for which the size alone says nothing."""
    engine = Engine("tiny", replace(base, max_length=10**6), Limits())
    async with served(engine) as http:
        long = asyncio.create_task(http.post("/v1/completions", json={"model": "tiny", "prompt": HUGE}, timeout=60))
        waits = []
        while not long.done():
            began = time.monotonic()
            await asyncio.sleep(0.005)
            waits.append(time.monotonic() - began)
        assert (await long).json()["error"]["param"] == "input_tokens"
    assert len(waits) > 5
    assert sorted(waits)[-2] < 2, "one wait holds the parsing of 4 MB of JSON"


@pytest.mark.threat("D17")
async def test_an_engine_takes_no_body_without_end(base: BaseModel) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 2**20

    async with served(Engine("tiny", base, Limits())) as http:
        answer = await http.post("/v1/completions", content=endless())
        assert (answer.status_code, answer.json()["error"]["message"]) == (413, "The body is over 8 MB.")


@pytest.mark.threat("D17")
@pytest.mark.parametrize("fields", [{"stop": ["x"] * 17}, {"stop": ["x" * 1001]}, {"stop_token_ids": [1] * 1025}])
async def test_what_is_looked_for_at_each_token_is_short(base: BaseModel, fields: dict[str, Any]) -> None:
    async with served(Engine("tiny", base, Limits())) as http:
        answer = await http.post("/v1/completions", json={"model": "tiny", "prompt": "a", **fields})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(fields)))


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    with running_valkey() as valkey, running_router(valkey, tmp_path, metrics_token="watch") as router:
        yield router


@pytest.mark.threat("D17")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": HUGE}),
        ("/v1/completions", {"prompt": ["short", HUGE]}),
        ("/v1/embeddings", {"input": HUGE}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": HUGE}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": HUGE}]}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 100}] * 100}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "tools": [tool(HUGE)]}),
        ("/v1/chat/completions", {"messages": [{"role": "assistant", "tool_calls": [call(HUGE)]}]}),
        ("/v1/responses", {"input": "a", "instructions": HUGE}),
        ("/v1/responses", {"input": [{"type": "function_call", "name": "a", "arguments": HUGE}]}),
        ("/v1/completions", {"prompt": "a", "suffix": HUGE}),
    ],
)
def test_the_router_refuses_it_for_any_engine(router: Router, path: str, body: dict[str, Any]) -> None:
    with running_engine() as engine:
        table = make_table(engine.url)
        route = VersionRoute("eu", "tiny", "01" * 32, (engine.url,), most_characters=8000)
        router.publish(replace(table, versions={STABLE: route}))
        began = time.monotonic()
        answer = router.http.post(path, headers=INFER, json={"model": "compliance", **body})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert time.monotonic() - began < 5
        assert engine.fake.received == []
        assert router.complete(prompt="a" * 8000).status_code == 200


@pytest.mark.threat("D17")
@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_stops_the_replica_and_is_in_no_count(router: Router, base: BaseModel, stream: bool) -> None:
    engine = Engine(STABLE, base, Limits())
    with Server(create_app(engine)) as server:
        router.publish(make_table(server.url))
        body = {"model": "compliance", "prompt": "a", "stream": stream, **ENDLESS}
        response = router.http.stream("POST", "/v1/completions", headers=INFER, json=body, timeout=0.3)
        # Who streams leaves after the first part, who does not after 0.3 s.
        with suppress(httpx.ReadTimeout), response as answer:
            next(answer.iter_raw())
        wait_until(lambda: not engine.loop.load().running, what="the engine to stop")
        assert engine.loop.load().generated_tokens < 900
    [outcome] = router.reported()
    assert outcome["status"] == 499
    metrics = router.http.get("/metrics", headers=WATCH).text
    assert (
        f'adapterhub_client_closed_total{{alias="compliance",arm="none",project="eu",version="{STABLE}"}} 1.0'
        in metrics
    )
    assert 'adapterhub_requests_total{alias="compliance"' not in metrics
    assert "adapterhub_request_seconds_count{" not in metrics


@pytest.mark.threat("D17")
def test_who_leaves_while_a_version_is_loaded_waits_for_nothing(router: Router) -> None:
    router.publish(make_table())
    with pytest.raises(httpx.ReadTimeout):
        router.http.post("/v1/completions", headers=INFER, json={"model": "compliance", "prompt": "a"}, timeout=0.3)
    assert router.reported()[0]["status"] == 499
    assert "adapterhub_waiting_for_load 0.0" in router.http.get("/metrics", headers=WATCH).text
