"""Requests and answers as vLLM writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from serving_client.engine.engine import Engine
from serving_client.engine.errors import NOT_FINITE

ASK = {"model": "tiny", "prompt": "The bank", "max_tokens": 12, "temperature": 0, "ignore_eos": True}


async def load(http: httpx.AsyncClient, name: str, path: object, **fields: Any) -> httpx.Response:
    return await http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **fields})


async def unload(http: httpx.AsyncClient, name: str) -> httpx.Response:
    return await http.post("/v1/unload_lora_adapter", json={"lora_name": name})


async def complete(http: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await http.post("/v1/completions", json=ASK | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def error(status: int, kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


async def test_load_list_unload(http: httpx.AsyncClient, adapters: dict[str, Path], base_folder: Path) -> None:
    folder = adapters["rank-4"]
    loaded = await load(http, "dora", folder)
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'dora' added successfully.")
    cards = (await http.get("/v1/models")).json()["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("tiny", str(base_folder), None),
        ("dora", str(folder), "tiny"),
    ]
    unloaded = await unload(http, "dora")
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'dora' removed successfully.")
    answer = await http.post("/v1/completions", json=ASK | {"model": "dora"})
    assert answer.status_code == 404
    assert answer.json() == error(
        404, "NotFoundError", "The model `dora` does not exist. Valid aliases: tiny.", "model"
    )


async def test_the_lora_endpoints_refuse_in_vllms_words(
    http: httpx.AsyncClient, adapters: dict[str, Path], tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    await load(http, "dora", adapters["rank-4"])
    again = await load(http, "dora", adapters["rank-4"])
    assert again.json() == error(
        400,
        "InvalidUserInput",
        "The lora adapter 'dora' has already been loaded. "
        "If you want to load the adapter in place, set 'load_inplace' to True.",
    )
    missing = await load(http, "missing", tmp_path / "nowhere")
    assert missing.json() == error(404, "NotFoundError", "Loading lora missing failed: No adapter found for <path>")
    base = await load(http, "tiny", adapters["rank-4"])
    assert base.json() == error(400, "InvalidUserInput", "The lora adapter 'tiny' conflicts with a served base model.")
    empty = await load(http, "", "")
    assert empty.json() == error(400, "InvalidUserInput", "Both 'lora_name' and 'lora_path' must be provided.")
    unknown = await unload(http, "nope")
    assert unknown.json() == error(404, "NotFoundError", "The lora adapter 'nope' cannot be found.")
    nameless = await unload(http, "")
    assert nameless.json() == error(
        400, "InvalidUserInput", "'lora_name' needs to be provided to unload a LoRA adapter."
    )


async def test_a_body_without_a_field_is_refused_in_vllms_words(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/load_lora_adapter", json={"lora_name": "dora"})
    assert response.status_code == 400
    assert response.json() == error(
        400,
        "Bad Request",
        "1 validation error:\n  {'type': 'missing', 'loc': 'body.lora_path', 'msg': 'Field required', "
        "'input': '<dict of 1 items>'}",
        "body.lora_path",
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"r": 128, "lora_alpha": 128}, "LoRA rank 128 is greater than max_lora_rank 64."),
        ({"r": 8, "lora_alpha": 8, "use_dora": True}, "The embedded engine does not yet support DoRA."),
    ],
)
async def test_an_adapter_that_cannot_be_served_is_an_internal_error_as_in_vllm(
    http: httpx.AsyncClient,
    tmp_path: Path,
    make_adapter: Callable[..., Path],
    fields: dict[str, Any],
    reason: str,
) -> None:
    response = await load(http, "bad", make_adapter(tmp_path / "bad", **fields))
    assert response.status_code == 500
    assert response.json() == error(
        500,
        "InternalServerError",
        f"Call to add_lora method failed: Worker failed with error '{reason}', "
        "please check the stack trace above for the root cause",
    )


async def test_a_completion_counts_and_shows_its_tokens(http: httpx.AsyncClient) -> None:
    answer = await complete(http, return_token_ids=True)
    choice = answer["choices"][0]
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["usage"] == {
        "prompt_tokens": 8,
        "total_tokens": 20,
        "completion_tokens": 12,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    assert (len(choice["token_ids"]), len(choice["prompt_token_ids"])) == (12, 8)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert (await complete(http, prompt=choice["prompt_token_ids"]))["choices"][0]["text"] == choice["text"]


async def test_a_stream_tells_the_same_as_an_answer(http: httpx.AsyncClient, adapters: dict[str, Path]) -> None:
    await load(http, "dora", adapters["rank-16"])
    whole = await complete(http, model="dora", return_token_ids=True)
    body = ASK | {"model": "dora", "stream": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    response = await http.post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response)
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    parts = [chunk["choices"][0] for chunk in chunks]
    assert "".join(part["text"] for part in parts) == whole["choices"][0]["text"]
    assert [token for part in parts for token in part["token_ids"]] == whole["choices"][0]["token_ids"]
    assert [part["finish_reason"] for part in parts] == [None] * 11 + ["length"]
    assert {chunk["model"] for chunk in chunks} == {"dora"}


async def test_a_chat_streams_the_same_as_it_answers(http: httpx.AsyncClient) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9, "temperature": 0}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["prompt_tokens"] == len("user: hello\n")
    chunks = events(await http.post("/v1/chat/completions", json=body | {"stream": True}))
    parts = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert parts[0] == {"role": "assistant", "content": ""}
    assert "".join(part["content"] for part in parts) == answer["choices"][0]["message"]["content"]


async def test_a_stop_string_ends_the_answer_before_itself(http: httpx.AsyncClient) -> None:
    text = (await complete(http, max_tokens=40))["choices"][0]["text"]
    stop = text[10:12]
    answer = await complete(http, max_tokens=40, stop=[stop, "never said"])
    choice = answer["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    streamed = events(await http.post("/v1/completions", json=ASK | {"max_tokens": 40, "stop": stop, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == choice["text"]


async def test_a_stop_token_ends_the_answer(http: httpx.AsyncClient) -> None:
    tokens = (await complete(http, return_token_ids=True))["choices"][0]["token_ids"]
    answer = await complete(http, stop_token_ids=[tokens[5]], return_token_ids=True)
    assert answer["choices"][0]["token_ids"] == tokens[: tokens.index(tokens[5]) + 1]
    assert (answer["choices"][0]["finish_reason"], answer["choices"][0]["stop_reason"]) == ("stop", tokens[5])


async def test_a_bias_moves_a_token_in_its_own_request_only(http: httpx.AsyncClient) -> None:
    plain = (await complete(http, return_token_ids=True))["choices"][0]["token_ids"]
    biased = await complete(http, return_token_ids=True, logit_bias={str(plain[0]): -100, "65": 100})
    assert set(biased["choices"][0]["token_ids"]) == {65}
    assert (await complete(http, return_token_ids=True))["choices"][0]["token_ids"] == plain


async def test_a_seed_repeats_a_sampled_answer(http: httpx.AsyncClient) -> None:
    answers = [await complete(http, temperature=1.0, top_p=0.9, top_k=50, seed=seed) for seed in (7, 7, 8)]
    first, again, other = (answer["choices"][0]["text"] for answer in answers)
    assert first == again != other


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": True}, "n"),
        ({"n": 10, "prompt": ["a"] * 60}, "n"),
        ({"logit_bias": {"257": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": ["1"]}, "logit_bias"),
        ({"top_k": 1.5}, "top_k"),
        ({"stream_options": True}, "stream_options"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "messages"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"echo": 1}, "echo"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [999]}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 600}, "input_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"model": 3}, "model"),
        ({"seed": 2**80}, "seed"),
    ],
)
async def test_what_cannot_be_honoured_is_refused(http: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await http.post("/v1/completions", json=ASK | fields)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"\xff"])
async def test_a_body_that_is_no_object_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert (await http.post(path, content=body)).status_code == 400


async def test_health_version_and_metrics(http: httpx.AsyncClient, adapters: dict[str, Path]) -> None:
    await load(http, "dora", adapters["rank-4"])
    await complete(http, model="dora")
    assert (await http.get("/health")).status_code == 200
    assert (await http.get("/version")).json()["engine"] == "adapterhub-embedded"
    metrics = (await http.get("/metrics")).text
    assert 'vllm:generation_tokens_total{model_name="tiny"} 12\n' in metrics
    assert 'max_lora="8",running_lora_adapters="",waiting_lora_adapters=""' in metrics


async def test_numbers_that_overflow_fail_their_own_request_only(
    make_engine: Callable[..., Engine],
    serve: Callable[[Engine], Any],
    adapters: dict[str, Path],
    tmp_path: Path,
    make_adapter: Callable[..., Path],
) -> None:
    engine = make_engine()
    huge = make_adapter(tmp_path / "huge", r=4, lora_alpha=2e38)
    async with serve(engine) as http:
        await load(http, "huge", huge)
        await load(http, "dora", adapters["rank-4"])
        before = await complete(http, model="dora")
        failed = await http.post("/v1/completions", json=ASK | {"model": "huge"})
        after = await complete(http, model="dora")
    assert failed.status_code == 500
    assert failed.json()["error"]["message"] == NOT_FINITE
    assert after["choices"] == before["choices"]


async def test_a_dead_thread_is_unhealthy_and_tells_its_requests(
    make_engine: Callable[..., Engine], serve: Callable[[Engine], Any]
) -> None:
    engine = make_engine()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no memory left")

    engine.base.model.register_forward_pre_hook(fail)
    async with serve(engine) as http:
        answers = [await http.post("/v1/completions", json=ASK) for _ in range(2)]
        assert (await http.get("/health")).status_code == 503
    assert [answer.status_code for answer in answers] == [500, 500]
    assert "no memory left" in answers[0].text
