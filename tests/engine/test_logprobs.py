"""Log-probabilities of answers and prompts: the numbers are transformers', the form is vLLM's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import LlamaForCausalLM

PROMPT = "The bank shall report"
ASK = {"model": "tiny", "prompt": PROMPT, "max_tokens": 5, "temperature": 0, "ignore_eos": True}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def model(base_folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(base_folder)


def reference(model: LlamaForCausalLM, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities (tokens - 1, vocabulary): row i is about token i + 1."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, :-1]
    return logits.log_softmax(dim=-1)


async def complete(http: httpx.AsyncClient, path: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    response = await http.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def events(http: httpx.AsyncClient, path: str, **body: Any) -> list[dict[str, Any]]:
    response = await http.post(path, json=body | {"stream": True})
    return [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if "{" in line]


async def test_an_answers_logprobs_are_the_models(http: httpx.AsyncClient, model: LlamaForCausalLM) -> None:
    answer = await complete(http, **ASK, logprobs=3, logit_bias={"32": 50}, return_token_ids=True)
    choice = answer["choices"][0]
    tokens = choice["prompt_token_ids"] + choice["token_ids"]
    rows = reference(model, tokens)[len(PROMPT) - 1 :]
    expected = rows.gather(1, torch.tensor(choice["token_ids"])[:, None])[:, 0]
    got = choice["logprobs"]
    assert got["tokens"] == ["A"] * 5, "the bias chose, and changed no log-probability"
    assert got["token_logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)
    assert got["text_offset"] == [0, 1, 2, 3, 4]
    for top, row, own in zip(got["top_logprobs"], rows, expected.tolist(), strict=True):
        likely = [*row.topk(3).values.tolist(), own]
        assert max(top.values()) == pytest.approx(likely[0], abs=1e-4)
        # Tokens that are parts of a character share one text, and one entry.
        assert all(min(abs(value - number) for number in likely) < 1e-4 for value in top.values())
        assert top["A"] == pytest.approx(own, abs=1e-4)


async def test_an_echo_scores_the_prompt(http: httpx.AsyncClient, model: LlamaForCausalLM) -> None:
    tokens = list(PROMPT.encode())
    scored = await complete(http, **ASK | {"max_tokens": 0}, echo=True, logprobs=1)
    choice = scored["choices"][0]
    assert choice["text"] == PROMPT
    assert scored["usage"]["completion_tokens"] == 0
    assert "".join(choice["logprobs"]["tokens"]) == PROMPT
    assert choice["logprobs"]["text_offset"] == list(range(len(PROMPT)))
    assert choice["logprobs"]["token_logprobs"][0] is choice["logprobs"]["top_logprobs"][0] is None
    ids = (await complete(http, **ASK, return_token_ids=True))["choices"][0]["prompt_token_ids"]
    rows = reference(model, ids)
    expected = rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
    longer = await complete(http, **ASK, echo=True, logprobs=1)
    plain = await complete(http, **ASK, logprobs=1)
    assert longer["choices"][0]["text"] == PROMPT + plain["choices"][0]["text"]
    got = longer["choices"][0]["logprobs"]["token_logprobs"]
    assert got[1 : len(tokens)] == pytest.approx(expected, abs=1e-4)
    assert got[len(tokens) :] == pytest.approx(plain["choices"][0]["logprobs"]["token_logprobs"], abs=1e-4)


async def test_a_stream_has_the_same_logprobs(http: httpx.AsyncClient) -> None:
    whole = (await complete(http, **ASK, echo=True, logprobs=2))["choices"][0]
    parts = [event["choices"][0] for event in await events(http, "/v1/completions", **ASK, echo=True, logprobs=2)]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset"):
        joined = [value for part in parts for value in part["logprobs"][name]]
        assert joined == (
            pytest.approx(whole["logprobs"][name]) if name == "token_logprobs" else whole["logprobs"][name]
        )


async def test_a_chat_lists_its_tokens_with_alternatives(http: httpx.AsyncClient) -> None:
    path = "/v1/chat/completions"
    answer = await complete(http, path, **CHAT, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert all(len(entry["top_logprobs"]) == 2 for entry in content)
    assert content[0]["logprob"] == content[0]["top_logprobs"][0]["logprob"], "it is greedy"
    bare = await complete(http, path, **CHAT, logprobs=True)
    assert [entry["top_logprobs"] for entry in bare["choices"][0]["logprobs"]["content"]] == [[]] * len(content)
    assert (await complete(http, path, **CHAT))["choices"][0]["logprobs"] is None
    parts = [event["choices"][0]["logprobs"] for event in await events(http, path, **CHAT, logprobs=True)]
    assert len([entry for part in parts if part for entry in part["content"]]) == len(content)


async def test_prompt_logprobs_are_by_token(http: httpx.AsyncClient, model: LlamaForCausalLM) -> None:
    ids = list(range(60, 90))
    answer = await complete(http, **ASK | {"prompt": ids}, prompt_logprobs=2)
    first, *others = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    rows = reference(model, ids)
    for entry, token, row in zip(others, ids[1:], rows, strict=True):
        own = entry[str(token)]
        assert own["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        assert own["rank"] == int((row > row[token]).sum()) + 1
        assert int(row.argmax()) in map(int, entry)


async def test_prompts_of_many_lengths_and_wishes_are_scored_together(
    http: httpx.AsyncClient, model: LlamaForCausalLM
) -> None:
    prompts = [list(range(40, 40 + length)) for length in (3, 150, 9, 77)]
    answer = await complete(http, **ASK | {"prompt": prompts, "max_tokens": 1}, echo=True, logprobs=0)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    for ids, choice in zip(prompts, answer["choices"], strict=True):
        rows = reference(model, ids)
        expected = rows.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        assert choice["logprobs"]["token_logprobs"][1:-1] == pytest.approx(expected, abs=1e-4)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, prompts))


async def test_several_answers_to_several_prompts(http: httpx.AsyncClient) -> None:
    body = {**ASK, "prompt": ["one", "two"], "n": 3, "temperature": 1.0, "seed": 7}
    answer = await complete(http, **body)
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert len(set(texts)) == 6
    assert answer["usage"] == {
        "prompt_tokens": 6,
        "total_tokens": 36,
        "completion_tokens": 30,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }
    assert [choice["text"] for choice in (await complete(http, **body))["choices"]] == texts
    first = await complete(http, **body | {"prompt": "one", "n": 1})
    assert first["choices"][0]["text"] == texts[0]
    streamed = ["" for _ in texts]
    for event in await events(http, "/v1/completions", **body):
        part = event["choices"][0]
        streamed[part["index"]] += part["text"]
    assert streamed == texts


async def test_several_answers_to_a_chat(http: httpx.AsyncClient) -> None:
    body = {**CHAT, "n": 2, "temperature": 1.0, "seed": 1}
    answer = await complete(http, "/v1/chat/completions", **body)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert len(set(texts)) == 2
    opened, streamed = [], ["", ""]
    for event in await events(http, "/v1/chat/completions", **body):
        part = event["choices"][0]
        opened += [part["index"]] if "role" in part["delta"] else []
        streamed[part["index"]] += part["delta"]["content"]
    assert sorted(opened) == [0, 1]
    assert streamed == texts
