"""Fields of requests that would reach an engine: what ordinary clients send passes, everything else is named."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving_client.engine.completion_request import parse_chat, parse_completion
from serving_client.engine.errors import ApiError
from serving_client.regex import unfolded
from tests.fakes.routing import INFER, make_table
from tests.fakes.stage import Engine, Router, running_engine, running_router, running_valkey

# Bodies as openai 3.57.0 and langchain-openai 1.7.4 send them.
CLIENTS = json.loads((Path(__file__).parent / "sdk_bodies.json").read_text())
NOT_FOR_CALLERS = [
    "priority",
    "request_id",
    "prompt_embeds",
    "custom_logit_processor",
    "custom_params",
    "logits_processors",
    "vllm_xargs",
    "cache_salt",
    "kv_transfer_params",
    "ec_transfer_params",
    "chat_template",
    "chat_template_kwargs",
    "lora_path",
    "lora_request",
    "mm_processor_kwargs",
    "documents",
    "guided_regex",
    "guided_grammar",
    "structured_outputs",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
    "use_beam_search",
    "data_parallel_rank",
    "bootstrap_host",
    "return_hidden_states",
    "rid",
    "session_params",
    "a" * 5000,
    "",
]
UNFOLDING = {"type": "string", "pattern": "(?:(?:(?:a{999}){999}){999})"}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Router, Engine]]:
    folder = tmp_path_factory.mktemp("router")
    with running_valkey() as valkey, running_engine() as engine, running_router(valkey, folder) as router:
        engine.fake.embeds = True
        router.publish(make_table(engine.url))
        yield router, engine


@pytest.mark.threat("D31")
@pytest.mark.parametrize("name", NOT_FOR_CALLERS)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings"])
def test_a_field_that_is_not_for_callers_is_refused_by_name(stage: tuple[Router, Engine], path: str, name: str) -> None:
    router, engine = stage
    engine.fake.received.clear()
    answer = router.http.post(path, headers=INFER, json={"model": "compliance", name: 1})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "field_not_allowed")
    assert error["message"].startswith(name[:200])
    assert engine.fake.received == []


@pytest.mark.threat("D31")
@pytest.mark.parametrize("sent", CLIENTS, ids=lambda sent: sent["client"])
def test_what_an_ordinary_client_sends_reaches_the_engine(stage: tuple[Router, Engine], sent: dict[str, Any]) -> None:
    router, engine = stage
    engine.fake.received.clear()
    answer = router.http.post(sent["path"], headers=INFER, json=sent["body"] | {"model": "compliance"})
    assert answer.status_code == 200, answer.text
    [(received, _)] = engine.fake.received
    received = {name: value for name, value in received.items() if name not in ("cache_salt", "model")}
    assert received == {name: value for name, value in sent["body"].items() if name != "model"}


@pytest.mark.threat("D31")
@pytest.mark.parametrize(
    ("path", "fields", "code"),
    [
        ("/v1/completions", {"prompt": ["a"] * 65}, "too_many_prompts"),
        ("/v1/completions", {"prompt": [[1]] * 65}, "too_many_prompts"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "too_many_prompts"),
        ("/v1/chat/completions", {"messages": [{}] * 4097}, "too_many_messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * 4097}]}, "too_many_messages"),
        ("/v1/chat/completions", {"messages": [], "tools": [{}] * 20_001}, "schema_too_large"),
        ("/v1/completions", {"prompt": "a", "best_of": 500}, "bad_n"),
        ("/v1/completions", {"prompt": "a", "stop": ["x"] * 17}, "bad_stop"),
        ("/v1/completions", {"prompt": "a", "stop": ["x" * 1001]}, "bad_stop"),
        ("/v1/completions", {"prompt": "a", "stop": "x" * 1001}, "bad_stop"),
        ("/v1/completions", {"prompt": "a", "stop_token_ids": [1] * 1025}, "too_many_tokens"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {str(n): 1 for n in range(1025)}}, "too_many_tokens"),
    ],
)
def test_what_would_hold_an_engine_up_is_refused(
    stage: tuple[Router, Engine], path: str, fields: dict[str, Any], code: str
) -> None:
    router, engine = stage
    engine.fake.received.clear()
    answer = router.http.post(path, headers=INFER, json={"model": "compliance", **fields})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert engine.fake.received == []


@pytest.mark.threat("D31")
@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data/"}},
        {"type": "image_url", "image_url": "file:///etc/passwd"},
        {"type": "video_url", "video_url": {"url": "https://inside.bank/"}},
        {"type": "audio_url", "audio_url": {"url": "http://localhost:8000/"}},
        {"type": "image_url", "image_url": {"url": ["data:", "http://x"]}},
    ],
)
def test_no_engine_is_sent_to_an_address(stage: tuple[Router, Engine], part: dict[str, Any]) -> None:
    router, engine = stage
    engine.fake.received.clear()
    messages = [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]
    answer = router.http.post("/v1/chat/completions", headers=INFER, json={"model": "compliance", "messages": messages})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "address_not_allowed")
    assert engine.fake.received == []


@pytest.mark.threat("D15")
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": UNFOLDING}}},
        {"response_format": {"json_schema": {"schema": {"patternProperties": {"(a{99}){999}": {}}}}}},
        {"tools": [{"function": {"parameters": {"pattern": "[a"}}}]},
        {"tools": [{"function": {"parameters": {"pattern": "a" * 300}}}] * 100},
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"properties": {"x": UNFOLDING}}}}]},
        {"functions": [{"name": "a", "parameters": UNFOLDING}]},
    ],
)
def test_no_engine_is_given_a_pattern_that_unfolds(stage: tuple[Router, Engine], fields: dict[str, Any]) -> None:
    router, engine = stage
    engine.fake.received.clear()
    body = {"model": "compliance", "messages": [{"role": "user", "content": "a"}], **fields}
    answer = router.http.post("/v1/chat/completions", headers=INFER, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_pattern")
    assert engine.fake.received == []


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        (r"^\d{4}-\d{2}-\d{2}$", 12),
        ("[A-Z]{2}[0-9]{2}[A-Z0-9]{1,30}", 34),
        ("(ab{3}){10}", 40),
        (r"\(a{2,}\)", 4),
        ("a{,5}", 5),
        ("(?!x)y", 4),
        ("]{3}", 3),
        ("[]a]{7}", 7),
        ("{", 1),
        ("((a{9}){9}){9}", 729),
    ],
)
def test_a_pattern_is_measured_without_being_compiled(pattern: str, size: int) -> None:
    assert unfolded(pattern) == size


HARD = ["(" * 100_000, "a{999}" * 50_000, "[" * 100_000, "[\\]" * 30_000, "{1" * 100_000, "(a{9})" * 30_000]


@pytest.mark.parametrize("pattern", HARD, ids=range(len(HARD)))
def test_measuring_takes_no_time(pattern: str) -> None:
    began = time.process_time()
    unfolded(pattern)
    assert time.process_time() - began < 1


@pytest.mark.threat("D31")
@pytest.mark.parametrize("name", NOT_FOR_CALLERS)
def test_the_embedded_engine_knows_no_other_fields_either(name: str) -> None:
    if name in ("cache_salt", "prompt_logprobs"):
        pytest.skip("the router sets it, or lets nobody send it")
    for parse, given in ((parse_completion, {"prompt": "a"}), (parse_chat, {"messages": [{"role": "user"}]})):
        with pytest.raises(ApiError) as refusal:
            parse({**given, name: 1})
        assert (refusal.value.status, refusal.value.param) == (400, name[:200])
