"""The client against an engine that answers in vLLM's words."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount

from serving_client import (
    AdapterAlreadyLoaded,
    AdapterNotLoaded,
    EngineClient,
    EngineFailed,
    EngineRejected,
    EngineUnreachable,
    LoadedModel,
)
from serving_client.engine.errors import NOT_FINITE
from tests.fakes.engine import FakeEngine, error
from tests.fakes.server import Server, closed_url
from tests.fakes.trickle import HEAD, trickling
from tests.waiting import wait_until

PATH = "/served/one"


@pytest.fixture
def fake() -> FakeEngine:
    engine = FakeEngine()
    engine.folders = {PATH: 8, "/served/large": 128}
    return engine


@pytest.fixture
def client(fake: FakeEngine) -> Iterator[EngineClient]:
    with Server(fake.app()) as server, EngineClient(server.url, timeout_s=5) as client:
        yield client


def test_load_list_complete_unload(client: EngineClient) -> None:
    client.load_adapter("one", PATH)
    assert client.models() == [LoadedModel("tiny", "models/tiny", None, 512), LoadedModel("one", PATH, "tiny")]
    answer = client.complete("one", "This package was", max_tokens=2)
    assert (answer.text, answer.completion_tokens) == (" two words", 2)
    client.unload_adapter("one")
    assert [model.name for model in client.models()] == ["tiny"]


def test_health_and_version(client: EngineClient, fake: FakeEngine) -> None:
    assert client.health()
    assert client.version() == "0.32.0"
    fake.is_healthy = False
    assert not client.health()


def test_a_name_that_is_taken(client: EngineClient) -> None:
    client.load_adapter("one", PATH)
    with pytest.raises(AdapterAlreadyLoaded, match="'one' has already been loaded"):
        client.load_adapter("one", PATH)


@pytest.mark.parametrize(
    ("path", "words"),
    [("/nowhere", "No adapter found"), ("/served/large", "rank 128 is greater than max_lora_rank 64")],
)
def test_an_adapter_that_cannot_be_used_is_refused_for_good(client: EngineClient, path: str, words: str) -> None:
    with pytest.raises(EngineRejected, match=words) as caught:
        client.load_adapter("one", path)
    assert not isinstance(caught.value, AdapterAlreadyLoaded)


def test_a_dead_core_is_not_the_adapters_fault(client: EngineClient, fake: FakeEngine) -> None:
    fake.is_healthy = False
    with pytest.raises(EngineFailed, match="EngineCore"):
        client.load_adapter("one", PATH)


def test_names_that_are_not_loaded(client: EngineClient) -> None:
    with pytest.raises(AdapterNotLoaded, match="'one' cannot be found"):
        client.unload_adapter("one")
    with pytest.raises(AdapterNotLoaded, match="`one` does not exist"):
        client.complete("one", "a")


def completion_of(text: str, token_ids: list[int] | None = None) -> JSONResponse:
    choice = {"text": text} | ({"token_ids": token_ids} if token_ids else {})
    return JSONResponse({"choices": [choice], "usage": {"completion_tokens": 4}})


@pytest.mark.parametrize("text", ["!!!!", ""])
def test_weights_that_are_not_finite_cannot_be_talked_out_of_token_0(
    client: EngineClient, fake: FakeEngine, text: str
) -> None:
    for second in (completion_of(text, [0, 0, 0, 0]), completion_of(text)):
        fake.script.extend([completion_of(text), second])
        assert not client.is_finite("tiny", "a")
    assert fake.received[-1][0]["logit_bias"] == {"0": -100}


@pytest.mark.parametrize("text", ["!!!!", ""])
def test_a_sound_model_may_say_nothing(client: EngineClient, fake: FakeEngine, text: str) -> None:
    for second in (completion_of("", [2, 2, 2, 2]), completion_of("!!a!")):
        fake.script.extend([completion_of(text), second])
        assert client.is_finite("tiny", "a")


def test_what_was_said_needs_no_second_question(client: EngineClient, fake: FakeEngine) -> None:
    assert client.is_finite("tiny", "a")
    assert len(fake.received) == 1


def test_the_embedded_engines_word_on_numbers_is_about_the_adapter(client: EngineClient, fake: FakeEngine) -> None:
    fake.script.append(error(500, "InternalServerError", NOT_FINITE))
    with pytest.raises(EngineRejected, match="NaN or infinity"):
        client.is_finite("tiny", "a")


@pytest.mark.parametrize(("status", "kind"), [(400, EngineRejected), (500, EngineFailed), (503, EngineFailed)])
def test_a_completion_that_fails(client: EngineClient, fake: FakeEngine, status: int, kind: type[Exception]) -> None:
    fake.script.append(error(status, "Scripted", "scripted words"))
    with pytest.raises(kind, match="scripted words"):
        client.complete("tiny", "a")


def test_nobody_listens() -> None:
    with EngineClient(closed_url()) as client, pytest.raises(EngineUnreachable, match="does not answer"):
        client.models()


def test_an_engine_that_hangs(client: EngineClient, fake: FakeEngine) -> None:
    fake.gate.clear()
    with EngineClient(client.url, timeout_s=0.1) as impatient, pytest.raises(EngineUnreachable):
        impatient.complete("tiny", "a")
    fake.gate.set()


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"null", b'{"data":[{}]}', b'{"data":1}'])
def test_whatever_else_answers_there_is_no_engine(answer: bytes) -> None:
    with Server(Starlette(routes=[Mount("/", Response(answer))])) as other, EngineClient(other.url) as client:
        for call in (client.models, client.version, lambda: client.complete("tiny", "a")):
            with pytest.raises(EngineFailed, match="not as an engine"):
                call()


NOT_MODELS = [
    b"[" * 100_000,
    b'{"data": [{"id": {"a": 1}}]}',
    b'{"data": [{"id": "a\\u0000"}]}',
    b'{"data": [{"id": "\\ud800"}]}',
    b'{"data": [{"id": "a", "root": 5}]}',
    b'{"data": 5}',
]
NOT_COMPLETIONS = [
    b"[" * 100_000,
    b'{"choices": [{"text": 5}], "usage": {"completion_tokens": 1}}',
    b'{"choices": [{"text": "a"}], "usage": {"completion_tokens": "many"}}',
    b'{"choices": [{"text": "a", "token_ids": 5}], "usage": {"completion_tokens": 1}}',
    b'{"choices": [{"text": "a", "prompt_logprobs": [null, {"2": {"logprob": 1%s}}]}], "usage": {}}' % (b"0" * 400),
]


@pytest.mark.threat("D37")
@pytest.mark.parametrize("answer", [*NOT_MODELS, *NOT_COMPLETIONS], ids=lambda answer: answer[:70].decode())
def test_what_a_hostile_server_says_is_no_engines_answer(answer: bytes) -> None:
    """The attack: one such answer ended the control loop's round for all replicas of a cluster."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    with Server(app, lifespan="off") as server, EngineClient(server.url, timeout_s=5) as client:
        if answer in NOT_MODELS:
            with pytest.raises(EngineFailed):
                client.models()
        if answer in NOT_COMPLETIONS:
            for ask in (lambda: client.is_finite("a", "b"), lambda: client.prompt_logprobs("a", [1, 2])):
                with pytest.raises(EngineFailed):
                    ask()


@pytest.mark.threat("D37")
@pytest.mark.parametrize("prompt", [b"", b"HTTP/1.1 200 OK\r\nX-", HEAD], ids=["nothing", "a head", "a body"])
def test_an_answer_a_byte_at_a_time_ends_with_the_time_of_the_call(prompt: bytes) -> None:
    """The attack: a byte a second, each in time for its read, kept the loop's thread for ever."""
    with trickling(prompt) as server, EngineClient(server.url, timeout_s=0.5) as client:
        began = time.monotonic()
        with pytest.raises(EngineUnreachable):
            client.models()
        assert time.monotonic() - began < 3


def test_a_connection_is_used_again_after_the_time_of_an_earlier_call(fake: FakeEngine) -> None:
    connections = set()

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        connections.add(scope["client"])
        await fake.app()(scope, receive, send)

    with Server(counted, lifespan="off") as server, EngineClient(server.url, timeout_s=1) as client:
        client.models()
        over = time.monotonic() + 1.1
        wait_until(lambda: time.monotonic() > over)
        assert client.models()
        assert client.health()
    assert len(connections) == 1
