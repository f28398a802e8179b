"""Who may call what, and what is refused before anything is routed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from tests.fakes.engine import error
from tests.fakes.routing import CANDIDATE, FOREIGN, FOREIGNER, INFER, SECRET, STABLE, make_table, token
from tests.fakes.stage import Engine, Router, running_engine, running_router, running_valkey


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Router, Engine]]:
    """One for all tests here: none of them changes anything."""
    folder = tmp_path_factory.mktemp("router")
    with running_valkey() as valkey, running_engine() as engine, running_router(valkey, folder) as router:
        router.publish(make_table(engine.url))
        yield router, engine


@pytest.fixture
def router(served: tuple[Router, Engine]) -> Router:
    return served[0]


@pytest.fixture
def engine(served: tuple[Router, Engine]) -> Engine:
    served[1].fake.received.clear()
    return served[1]


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Status and code; every error has OpenAI's form."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Basic abc"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer ah_infer0000000"},
        {"Authorization": f"Bearer xx_infer0000000_{SECRET}"},
        token("nobody000000"),
        token("infer0000000", "another"),
        token("infer0000000", SECRET + "x"),
        token("expired00000"),
    ],
)
def test_without_a_good_token_401(router: Router, engine: Engine, headers: dict[str, str]) -> None:
    answer = router.complete(headers)
    assert refusal(answer) == (401, "invalid_token")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert refusal(router.http.get("/v1/models", headers=headers)) == (401, "invalid_token")
    assert engine.fake.received == []


def test_a_token_for_something_else_403(router: Router) -> None:
    assert refusal(router.complete(token("read00000000"))) == (403, "scope_missing")


@pytest.mark.threat("F2")
@pytest.mark.parametrize("name", ["billing", "invoices", FOREIGN, "tiny", "nothing", "../compliance"])
def test_names_of_others_and_of_nobody_404(router: Router, engine: Engine, name: str) -> None:
    assert refusal(router.complete(model=name)) == (404, "model_not_found")
    assert refusal(router.complete(INFER | {"X-Adapter-ID": name})) == (404, "model_not_found")
    assert engine.fake.received == []


def test_models_are_those_of_the_project(router: Router) -> None:
    def names(headers: dict[str, str]) -> set[str]:
        return {row["id"] for row in router.http.get("/v1/models", headers=headers).json()["data"]}

    assert names(INFER) == {"compliance", "unserved", STABLE, CANDIDATE}
    assert names(FOREIGNER) == {"billing", FOREIGN}


def test_a_model_says_since_when_it_exists(router: Router, engine: Engine) -> None:
    rows = router.http.get("/v1/models", headers=INFER).json()["data"]
    assert all(isinstance(row["created"], int) for row in rows)
    for row in rows:
        assert router.http.get(f"/v1/models/{row['id']}", headers=INFER).json() == row
    assert router.http.get("/v1/models/dora", headers=INFER).json()["id"] == "dora"


@pytest.mark.threat("F2")
@pytest.mark.parametrize("name", ["billing", "invoices", FOREIGN, "tiny", "nothing", "meta%2Fllama", "eu/compliance"])
def test_a_model_of_others_and_of_nobody_404(router: Router, name: str) -> None:
    assert refusal(router.http.get(f"/v1/models/{name}", headers=INFER)) == (404, "model_not_found")
    assert refusal(router.http.get(f"/v1/models/{name}")) == (401, "invalid_token")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("OPTIONS", "/v1/responses", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/compliance", "GET, HEAD"),
    ],
)
def test_another_method_405_names_those_that_are(router: Router, method: str, path: str, allowed: str) -> None:
    answer = router.http.request(method, path, headers=INFER)
    assert refusal(answer) == (405, "method_not_allowed")
    assert ", ".join(sorted(answer.headers["allow"].split(", "))) == allowed


def test_every_answer_has_an_id(router: Router, engine: Engine) -> None:
    answer = router.complete()
    assert answer.headers["x-request-id"] == answer.headers["x-response-id"]
    others = [
        router.complete({}),
        router.complete(model="nothing"),
        router.complete(foo=1),
        router.http.get("/nowhere"),
        router.http.get("/v1/models", headers=INFER | {"Host": "elsewhere"}),
        router.http.get("/healthz"),
    ]
    assert [answer.status_code for answer in others] == [401, 404, 400, 404, 400, 200]
    assert len({answer.headers["x-request-id"] for answer in others}) == len(others)


def engine_says(status: int, body: object) -> Response:
    return Response(body if isinstance(body, bytes) else json.dumps(body), status)


ENGINE_ERRORS = [
    (error(400, "BadRequestError", "bad top_p", "top_p"), ("bad top_p", "top_p", "bad_request")),
    (engine_says(400, {"object": "error", "message": "no", "type": "BadRequestError"}), ("no", None, "bad_request")),
    (engine_says(422, {"detail": [{"loc": ["body", "n"]}]}), ('[{"loc":["body","n"]}]', None, None)),
    (engine_says(400, {"error": "words"}), ("words", None, None)),
    (engine_says(400, b"<html>no</html>"), ("<html>no</html>", None, None)),
    (engine_says(400, b""), ("The engine refused the request.", None, None)),
    (
        error(400, "BadRequestError", "This model's maximum context length is 512 tokens."),
        ("This model's maximum context length is 512 tokens.", None, "context_length_exceeded"),
    ),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("refusal_of_engine", "expected"), ENGINE_ERRORS)
def test_errors_of_engines_have_the_same_form(
    router: Router, engine: Engine, refusal_of_engine: Response, expected: tuple[Any, ...], stream: bool
) -> None:
    engine.fake.script.append(refusal_of_engine)
    answer = router.complete(stream=stream)
    body = answer.json()["error"]
    assert (body["message"], body["param"], body["code"]) == expected
    assert (answer.status_code, body["type"]) == (refusal_of_engine.status_code, "invalid_request_error")
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.threat("F1")
@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/models/", "/v1/load_lora_adapter", "/v1/completions/", "/tokenize", "/invocations", "/docs"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_paths_404(router: Router, engine: Engine, method: str, path: str) -> None:
    assert refusal(router.http.request(method, path, headers=INFER)) == (404, "not_found")
    assert engine.fake.received == []


def test_other_methods_405(router: Router) -> None:
    assert refusal(router.http.get("/v1/completions", headers=INFER)) == (405, "method_not_allowed")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"model": "\\ud800"}', b"[" * 2000])
def test_what_is_no_json_object_400(router: Router, body: bytes) -> None:
    answer = router.http.post("/v1/completions", headers=INFER, content=body)
    assert refusal(answer) == (400, "bad_json")


def test_what_is_nested_too_deeply_400(router: Router) -> None:
    body = b'{"model": "compliance", "prompt": ' + b"[" * 500 + b"]" * 500 + b"}"
    answer = router.http.post("/v1/completions", headers=INFER, content=body)
    assert refusal(answer) == (400, "bad_json")


@pytest.mark.parametrize(
    "fields",
    [b'"n": 1, "n": 2', b'"model": "nothing"', b'"user": "a", "user" : "a"', b'"stop": [{"a": 1}], "stop": ["a"]'],
)
def test_a_field_that_is_there_twice_400(router: Router, engine: Engine, fields: bytes) -> None:
    body = b'{"model": "compliance", "prompt": "a", %b}' % fields
    answer = router.http.post("/v1/completions", headers=INFER, content=body)
    assert refusal(answer) == (400, "bad_json")
    assert answer.json()["error"]["param"] == fields.split(b'"')[1].decode()
    assert engine.fake.received == []


def test_a_nested_name_is_none_of_the_body(router: Router) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "model": {"const": '"model": "n":'}}}
    form = {"type": "json_schema", "json_schema": {"name": "model", "schema": schema}}
    deep = json.loads("[" * 200 + '{"user": 1}' + "]" * 200)
    answer = router.complete(response_format=form, n=1, user="user", metadata={"user": deep})
    assert answer.is_success, answer.text


@pytest.mark.parametrize("encoding", ["gzip", "br", "x"])
def test_a_compressed_body_415(router: Router, encoding: str) -> None:
    body = gzip.compress(b'{"model": "compliance", "prompt": "a"}')
    answer = router.http.post("/v1/completions", headers=INFER | {"Content-Encoding": encoding}, content=body)
    assert refusal(answer) == (415, "body_compressed")
    assert router.complete(INFER | {"Content-Encoding": "identity"}).is_success


@pytest.mark.parametrize(
    ("field", "code"),
    [
        ({"foo": 1}, "field_not_allowed"),
        ({"store": True}, "field_not_allowed"),
        ({"user": True}, "bad_value"),
        ({"user": 1.5}, "bad_value"),
        ({"safety_identifier": {}}, "bad_value"),
        ({"metadata": "law"}, "bad_value"),
        ({"prompt_cache_key": 5}, "bad_value"),
        ({"n": 0}, "bad_n"),
        ({"prompt": ["a"] * 65}, "too_many_prompts"),
        ({"stop": ["a"] * 17}, "bad_stop"),
        ({"stop_token_ids": [1] * 1025}, "too_many_tokens"),
        ({"response_format": {"pattern": "(a{999}){999}"}}, "bad_pattern"),
        ({"model": None}, "model_missing"),
        ({"model": "nothing"}, "model_not_found"),
    ],
)
def test_a_refusal_names_its_field(router: Router, engine: Engine, field: dict[str, Any], code: str) -> None:
    answer = router.complete(**field)
    assert refusal(answer)[1] == code
    assert answer.json()["error"]["param"] == next(iter(field))
    assert engine.fake.received == []


@pytest.mark.threat("F1")
@pytest.mark.parametrize(
    "name",
    ["cache_salt", "chat_template", "chat_template_kwargs", "lora_request", "lora_path", "lora_name"],
)
def test_fields_that_are_not_for_callers_400(router: Router, engine: Engine, name: str) -> None:
    answer = router.complete(**{name: "x"})
    assert refusal(answer) == (400, "field_not_allowed")
    assert name in answer.json()["error"]["message"]
    assert engine.fake.received == []


@pytest.mark.parametrize("field", [{"store": True}, {"store": "yes"}, {"service_tier": "flex"}, {"service_tier": []}])
def test_what_no_engine_does_is_not_dropped_in_silence(router: Router, engine: Engine, field: dict[str, Any]) -> None:
    answer = router.complete(**field)
    assert refusal(answer) == (400, "field_not_allowed")
    assert next(iter(field)) in answer.json()["error"]["message"]
    assert engine.fake.received == []
    assert router.complete(store=False, service_tier="auto").is_success


@pytest.mark.parametrize("body", [{"model": None}, {"model": ""}, {"model": 7}, {"model": ["compliance"]}])
def test_no_name_400(router: Router, body: dict[str, Any]) -> None:
    assert refusal(router.complete(**body)) == (400, "model_missing")


@pytest.mark.threat("F1")
@pytest.mark.parametrize("count", [0, -1, 9, 1.5, "2", [1]])
def test_too_many_answers_400(router: Router, count: object) -> None:
    assert refusal(router.complete(n=count)) == (400, "bad_n")


@pytest.mark.parametrize("count", [None, 1, 8])
def test_a_few_answers(router: Router, count: int | None) -> None:
    assert router.complete(n=count).is_success


def test_a_body_up_to_4_mb(router: Router) -> None:
    assert router.complete(prompt="a" * (4 * 2**20 - 1000)).is_success
    assert refusal(router.complete(prompt="a" * 4 * 2**20)) == (413, "body_too_large")


def test_a_body_of_unknown_length_is_counted(router: Router) -> None:
    endless = (b"a" * 2**20 for _ in range(5))
    answer = router.http.post("/v1/completions", headers=INFER, content=endless)
    assert refusal(answer) == (413, "body_too_large")


def test_without_a_table_nothing_but_healthz(start_router: Callable[[], Router]) -> None:
    router = start_router()
    assert router.http.get("/healthz").is_success
    for answer in (router.http.get("/readyz"), router.complete(), router.http.get("/v1/models")):
        assert refusal(answer) == (503, "no_routing_table")
        assert int(answer.headers["retry-after"]) > 0


def test_an_alias_whose_version_no_cluster_serves_503(router: Router) -> None:
    assert refusal(router.complete(model="unserved")) == (503, "not_servable")


def test_requests_are_counted_by_alias_version_arm_and_status(
    start_router: Callable[..., Router], engine: Engine
) -> None:
    router = start_router(metrics_token="watch")
    router.publish(make_table(engine.url))
    router.complete()
    router.complete({})
    metrics = router.http.get("/metrics", headers={"Authorization": "Bearer watch"}).text
    labels = f'alias="compliance",arm="none",project="eu",status="200",version="{STABLE}"'
    assert f"adapterhub_requests_total{{{labels}}} 1.0" in metrics
    assert 'adapterhub_requests_total{alias="",arm="none",project="",status="401",version=""} 1.0' in metrics
    assert (
        f'adapterhub_request_seconds_count{{alias="compliance",arm="none",project="eu",version="{STABLE}"}} 1.0'
        in metrics
    )
    assert "adapterhub_table_generation 1.0" in metrics
