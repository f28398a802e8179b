"""Exchanges as real servers had them, word for word: what each client sends, and how it reads the answer.

vLLM 0.32.0's were recorded. SGLang's and TensorRT-LLM's are those of their source and documents: neither runs on a CPU.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from serving_client import (
    AdapterAlreadyLoaded,
    AdapterNotLoaded,
    Completion,
    EngineClient,
    EngineFailed,
    EngineRejected,
    LoadedModel,
    SglangClient,
    TensorRtClient,
)
from tests.fakes.server import Server


@dataclass(frozen=True)
class Exchange:
    """What must be asked, and what is answered."""

    request: tuple[str, str]
    body: dict[str, Any] | None
    status: int
    answer: str


class Recording:
    """Gives its answers in their order, each to the question that it was given to."""

    def __init__(self, *exchanges: Exchange) -> None:
        self.left = deque(exchanges)

    def app(self) -> Starlette:
        return Starlette(routes=[Mount("/", self)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        now = self.left.popleft()
        content = await request.body()
        sent = (request.method, request.url.path), json.loads(content) if content else None
        is_right = sent == (now.request, now.body)
        answer = Response(now.answer, now.status) if is_right else Response(f"asked {sent}, not {now}", 418)
        await answer(scope, receive, send)


@contextmanager
def recorded(kind: type[EngineClient], *exchanges: Exchange) -> Iterator[EngineClient]:
    recording = Recording(*exchanges)
    with Server(recording.app()) as server, kind(server.url) as client:
        yield client
    assert not recording.left, "the client asked less than was recorded"


def error(status: int, kind: str, message: str) -> str:
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}})


def worker_failed(reason: str) -> str:
    return error(
        500,
        "InternalServerError",
        f"Call to add_lora method failed: Worker failed with error '{reason}', "
        "please check the stack trace above for the root cause",
    )


VLLM_LOAD = ("POST", "/v1/load_lora_adapter"), {"lora_name": "lora-r8", "lora_path": "M/lora-r8"}
VLLM_REFUSALS: dict[str, tuple[int, str, type[Exception], str]] = {
    "again": (
        400,
        error(
            400,
            "InvalidUserInput",
            "The lora adapter 'lora-r8' has already been loaded. If you want to "
            "load the adapter in place, set 'load_inplace' to True.",
        ),
        AdapterAlreadyLoaded,
        "already been loaded",
    ),
    "no folder": (
        404,
        error(404, "NotFoundError", "Loading lora lora-r8 failed: No adapter found for <path>"),
        EngineRejected,
        "No adapter found",
    ),
    "rank": (500, worker_failed("LoRA rank 128 is greater than max_lora_rank 64."), EngineRejected, "rank 128"),
    "DoRA": (500, worker_failed("vLLM does not yet support DoRA."), EngineRejected, "DoRA"),
    "cut file": (
        500,
        worker_failed("Error while deserializing header: incomplete metadata, file not fully covered"),
        EngineRejected,
        "incomplete metadata",
    ),
    "base's name": (
        400,
        error(400, "InvalidUserInput", "The lora adapter 'tiny' conflicts with a served base model."),
        EngineRejected,
        "conflicts",
    ),
    "dead core": (
        500,
        error(
            500, "InternalServerError", "EngineCore encountered an issue. See stack trace (above) for the root cause."
        ),
        EngineFailed,
        "EngineCore",
    ),
}


@pytest.mark.parametrize("case", VLLM_REFUSALS)
def test_vllm_refuses_a_load(case: str) -> None:
    status, answer, kind, words = VLLM_REFUSALS[case]
    with (
        recorded(EngineClient, Exchange(*VLLM_LOAD, status, answer)) as client,
        pytest.raises(kind, match=words) as refusal,
    ):
        client.load_adapter("lora-r8", "M/lora-r8")
    assert type(refusal.value) is kind


def test_vllm_loads_lists_completes_and_unloads() -> None:
    body = {"model": "lora-r64", "prompt": "This package was", "max_tokens": 6, "temperature": 0.0}
    answer = (
        '{"id":"cmpl-88454e1f9b3e8f0a","object":"text_completion","created":1795452434,"model":"lora-r64","choices":'
        '[{"index":0,"text":" made by","logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,'
        '"prompt_logprobs":null,"prompt_token_ids":null,"routed_experts":null}],"service_tier":null,'
        '"system_fingerprint":"vllm-0.32.0-37b61c88","usage":{"prompt_tokens":3,"total_tokens":9,"completion_tokens":6,'
        '"prompt_tokens_details":null,"completion_tokens_details":null},"kv_transfer_params":null,'
        '"ec_transfer_params":null,"metrics":null}'
    )
    models = (
        '{"object":"list","data":[{"id":"tiny","object":"model","created":1795452434,"owned_by":"vllm",'
        '"root":"models/tiny-llama","parent":null,"max_model_len":512,"permission":[]},{"id":"lora-r8","object":"model",'
        '"created":1795452434,"owned_by":"vllm","root":"MODELS/lora-r16","parent":"tiny","max_model_len":null,'
        '"permission":[]}]}'
    )
    not_found = error(404, "NotFoundError", "The model `lora-r4` does not exist. Valid aliases: tiny.")
    unknown = error(404, "NotFoundError", "The lora adapter 'nope' cannot be found.")
    unload = ("POST", "/v1/unload_lora_adapter")
    with recorded(
        EngineClient,
        Exchange(*VLLM_LOAD, 200, "Success: LoRA adapter 'lora-r8' added successfully."),
        Exchange(("GET", "/v1/models"), None, 200, models),
        Exchange(("GET", "/version"), None, 200, '{"version": "0.32.0"}'),
        Exchange(("GET", "/health"), None, 200, ""),
        Exchange(("POST", "/v1/completions"), body, 200, answer),
        Exchange(unload, {"lora_name": "lora-r4"}, 200, "Success: LoRA adapter 'lora-r4' removed successfully."),
        Exchange(unload, {"lora_name": "nope"}, 404, unknown),
        Exchange(("POST", "/v1/completions"), body | {"model": "lora-r4"}, 404, not_found),
    ) as client:
        client.load_adapter("lora-r8", "M/lora-r8")
        assert client.models()[1] == LoadedModel("lora-r8", "MODELS/lora-r16", "tiny")
        assert client.version() == "0.32.0"
        assert client.health()
        assert client.complete("lora-r64", "This package was", max_tokens=6) == Completion(" made by", 6, None)
        client.unload_adapter("lora-r4")
        with pytest.raises(AdapterNotLoaded, match="cannot be found"):
            client.unload_adapter("nope")
        with pytest.raises(AdapterNotLoaded, match="does not exist"):
            client.complete("lora-r4", "This package was", max_tokens=6)


QWEN = "qwen/qwen2.5-0.5b-instruct"
CARDS = json.dumps(
    {
        "object": "list",
        "data": [
            {"id": QWEN, "object": "model", "owned_by": "sglang", "root": QWEN, "parent": None, "max_model_len": 32768},
            {"id": "one", "object": "model", "owned_by": "sglang", "root": "/served/one", "parent": QWEN},
        ],
    }
)
ANSWER = json.dumps({"choices": [{"index": 0, "text": " two words"}], "usage": {"completion_tokens": 2}})
SGLANG_LOAD = ("POST", "/load_lora_adapter"), {"lora_name": "one", "lora_path": "/served/one"}


def adapters_answer(message: str = "", **loaded: str) -> str:
    return json.dumps({"success": not message, "error_message": message, "loaded_adapters": loaded})


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("LoRA with name one already exists. Loaded LoRAs: odict_keys(['one'])", AdapterAlreadyLoaded),
        ("Failed to load LoRA adapter one: rank 128 is not supported", EngineRejected),
        ("LoRA is not enabled. Please set `--enable-lora` to enable LoRA.", EngineRejected),
    ],
)
def test_sglang_refuses_a_load(message: str, kind: type[Exception]) -> None:
    exchange = Exchange(*SGLANG_LOAD, 400, adapters_answer(message))
    with recorded(SglangClient, exchange) as client, pytest.raises(kind) as refusal:
        client.load_adapter("one", "/served/one")
    assert type(refusal.value) is kind
    assert str(refusal.value) == message


def test_sglang_loads_lists_completes_and_unloads() -> None:
    body = {"prompt": "a", "max_tokens": 2, "temperature": 0.0}
    lost = "The following requested LoRA adapters are not loaded: two\nLoaded adapters: odict_keys(['one'])."
    refused = json.dumps({"object": "error", "message": lost, "type": "BadRequestError", "param": None, "code": 400})
    unload = ("POST", "/unload_lora_adapter")
    unknown = "LoRA with name two does not exist. Loaded LoRAs: odict_keys([])"
    with recorded(
        SglangClient,
        Exchange(*SGLANG_LOAD, 200, adapters_answer(one="/served/one")),
        Exchange(("GET", "/v1/models"), None, 200, CARDS),
        Exchange(("POST", "/v1/completions"), body | {"model": f"{QWEN}:one"}, 200, ANSWER),
        Exchange(("POST", "/v1/completions"), body | {"model": QWEN}, 200, ANSWER),
        Exchange(("POST", "/v1/completions"), body | {"model": f"{QWEN}:two"}, 400, refused),
        Exchange(unload, {"lora_name": "one"}, 200, adapters_answer()),
        Exchange(unload, {"lora_name": "two"}, 400, adapters_answer(unknown)),
        Exchange(("GET", "/get_server_info"), None, 200, '{"version": "0.5.23", "enable_lora": true}'),
    ) as client:
        client.load_adapter("one", "/served/one")
        assert client.complete("one", "a", max_tokens=2).text == " two words"
        client.complete(QWEN, "a", max_tokens=2)
        with pytest.raises(AdapterNotLoaded, match="are not loaded: two"):
            client.complete("two", "a", max_tokens=2)
        client.unload_adapter("one")
        with pytest.raises(AdapterNotLoaded, match="does not exist"):
            client.unload_adapter("two")
        assert client.version() == "0.5.23"


def test_tensorrt_llm_is_told_the_adapter_in_each_request() -> None:
    card = '{"object":"list","data":[{"id":"TinyLlama-1.1B","object":"model","created":1,"owned_by":"tensorrt_llm"}]}'
    body = {"model": "TinyLlama-1.1B", "prompt": "a", "max_tokens": 2, "temperature": 0.0}
    named = {"lora_name": "one", "lora_int_id": 1989329838, "lora_path": "/served/one"}
    with recorded(
        TensorRtClient,
        Exchange(("GET", "/v1/models"), None, 200, card),
        Exchange(("POST", "/v1/completions"), body | {"lora_request": named}, 200, ANSWER),
        Exchange(("POST", "/v1/completions"), body, 200, ANSWER),
        Exchange(("GET", "/v1/models"), None, 200, card),
    ) as client:
        client.load_adapter("one", "/served/one")
        client.complete("one", "a", max_tokens=2)
        client.complete("TinyLlama-1.1B", "a", max_tokens=2)
        assert client.models()[1] == LoadedModel("one", "/served/one", "TinyLlama-1.1B")
        with pytest.raises(AdapterAlreadyLoaded, match="/served/one"):
            client.load_adapter("one", "/served/two")
        client.unload_adapter("one")
        with pytest.raises(AdapterNotLoaded):
            client.complete("one", "a")


@pytest.mark.parametrize(("kind", "exchange"), [(EngineClient, VLLM_LOAD), (SglangClient, SGLANG_LOAD)])
def test_a_server_that_is_starting_is_no_refusal(
    kind: type[EngineClient], exchange: tuple[tuple[str, str], dict[str, str]]
) -> None:
    with (
        recorded(kind, Exchange(*exchange, 503, "starting")) as client,
        pytest.raises(EngineFailed, match="HTTP 503"),
    ):
        client.load_adapter(exchange[1]["lora_name"], exchange[1]["lora_path"])
