"""Answers of a form: JSON of a schema, and calls of tools."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving_client.engine.batching.grammar import BadGrammar, Grammar, Grammars
from serving_client.engine.engine import Engine
from serving_client.engine.tool_call_reader import CallReader, Part, Piece, calls_in
from serving_client.engine.tool_calls import CLOSES, OPENS, Call, ToolUse

SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["report", "audit"]},
        "urgent": {"type": "boolean"},
        "articles": {"type": "array", "items": {"$ref": "#/$defs/article"}, "minItems": 2, "maxItems": 2},
    },
    "required": ["kind", "urgent", "articles"],
    "additionalProperties": False,
    "$defs": {"article": {"type": "string", "pattern": "^[0-9]{2}$"}},
}
FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
TEMPLATE = (
    "{% for t in tools or () %}{{ t['function']['name'] }} {% endfor %}{% if tools %}<tool_call>{% endif %}"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ m.get('tool_calls') or '' }}\n{% endfor %}"
)


def tool(name: str, schema: dict[str, Any] = SCHEMA, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": schema, **fields}}


TOOLS = [tool("look_up"), tool("report", {"type": "object", "properties": {}, "additionalProperties": False})]
CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 300, "temperature": 0}
NAMED = {"type": "function", "function": {"name": "look_up"}}


@pytest.fixture
async def http(make_engine: Callable[..., Engine], serve: Callable[[Engine], Any]) -> AsyncIterator[httpx.AsyncClient]:
    """An engine whose template renders tools."""
    engine = make_engine()
    engine.base.tokenizer.chat_template = TEMPLATE
    async with serve(engine) as client:
        yield client


async def chat(http: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await http.post("/v1/chat/completions", json=CHAT | body)
    assert response.status_code == 200, response.text
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


async def streamed(http: httpx.AsyncClient, **body: Any) -> tuple[str, list[dict[str, Any]], str]:
    """The text, the calls as their pieces give them, and the finish reason of a stream."""
    response = await http.post("/v1/chat/completions", json=CHAT | body | {"stream": True})
    parts = [
        json.loads(line.removeprefix("data: "))["choices"][0] for line in response.text.split("\n\n") if "{" in line
    ]
    pieces = [piece for part in parts for piece in part["delta"].get("tool_calls", ())]
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if "id" in piece:
            assert (piece["index"], piece["type"], piece["function"]["arguments"]) == (len(calls), "function", "")
            calls.append(piece)
        else:
            assert set(piece) == {"index", "function"}
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    assert not calls or len(pieces) > 2 * len(calls), "arguments come in pieces"
    return "".join(part["delta"].get("content") or "" for part in parts), calls, parts[-1]["finish_reason"]


def require_answer(text: str) -> None:
    answer = json.loads(text)
    assert set(answer) == set(SCHEMA["required"])
    assert answer["kind"] in ("report", "audit")
    assert isinstance(answer["urgent"], bool)
    assert [len(article) for article in answer["articles"]] == [2, 2]
    assert "".join(answer["articles"]).isdigit()


@pytest.mark.parametrize("temperature", [0, 1.5])
async def test_an_answer_follows_its_schema(http: httpx.AsyncClient, temperature: float) -> None:
    choice = await chat(http, response_format=FORM, temperature=temperature, seed=3)
    require_answer(choice["message"]["content"])
    assert choice["finish_reason"] == "stop"
    text, _, reason = await streamed(http, response_format=FORM, temperature=temperature, seed=3)
    assert (text, reason) == (choice["message"]["content"], "stop")


async def test_each_answer_has_a_grammar_of_its_own(http: httpx.AsyncClient) -> None:
    body = CHAT | {"response_format": FORM, "n": 4, "temperature": 1.5, "seed": 1}
    choices = (await http.post("/v1/chat/completions", json=body)).json()["choices"]
    for choice in choices:
        require_answer(choice["message"]["content"])
    assert len({choice["message"]["content"] for choice in choices}) > 1


async def test_an_object_is_one_and_a_completion_may_be(http: httpx.AsyncClient) -> None:
    body = {"prompt": "a", "max_tokens": 40, "temperature": 0, "response_format": {"type": "json_object"}}
    text = (await http.post("/v1/completions", json=body)).json()["choices"][0]["text"]
    assert text.startswith("{")
    body["response_format"] = FORM
    body["max_tokens"] = 300
    require_answer((await http.post("/v1/completions", json=body)).json()["choices"][0]["text"])


@pytest.mark.parametrize("ignore_eos", [False, True])
async def test_other_requests_of_the_batch_are_free(http: httpx.AsyncClient, ignore_eos: bool) -> None:
    alone = await chat(http, max_tokens=20, ignore_eos=ignore_eos)
    body = CHAT | {"response_format": FORM, "ignore_eos": ignore_eos}
    formed = http.post("/v1/chat/completions", json=body)
    free = http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 20, "ignore_eos": ignore_eos})
    require_answer((await formed).json()["choices"][0]["message"]["content"])
    assert (await free).json()["choices"][0]["message"] == alone["message"]


async def test_a_function_that_is_named_is_called(http: httpx.AsyncClient) -> None:
    choice = await chat(http, tools=TOOLS, tool_choice=NAMED)
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "look_up")
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "stop", "as OpenAI has it"
    require_answer(call["function"]["arguments"])
    text, calls, reason = await streamed(http, tools=TOOLS, tool_choice=NAMED)
    assert (text, reason) == ("", "stop")
    assert [(call["index"], call["function"]) for call in calls] == [(0, call["function"])]


@pytest.mark.parametrize("parallel", [True, False])
async def test_a_required_call_is_made(http: httpx.AsyncClient, parallel: bool) -> None:
    body = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": parallel, "max_tokens": 400}
    choice = await chat(http, **body, logit_bias={"93": 5})
    calls = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert 1 <= len(calls) <= (16 if parallel else 1)
    for call in calls:
        if call["function"]["name"] == "look_up":
            require_answer(call["function"]["arguments"])
        else:
            assert json.loads(call["function"]["arguments"]) == {}
    _, parts, reason = await streamed(http, **body, logit_bias={"93": 5})
    assert [part["function"] for part in parts] == [call["function"] for call in calls]
    assert reason == "tool_calls"


async def test_without_a_wish_the_model_decides(http: httpx.AsyncClient) -> None:
    free = await chat(http, tools=TOOLS, max_tokens=10)
    assert free["message"]["tool_calls"] == []
    text, calls, _ = await streamed(http, tools=TOOLS, max_tokens=10)
    assert (text, calls) == (free["message"]["content"], [])
    none = await chat(http, tools=TOOLS, tool_choice="none", max_tokens=10)
    assert none["message"] == (await chat(http, max_tokens=10))["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "date"}}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://inside/a.json"}}}},
            "response_format",
        ),
        ({"response_format": "json"}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "shape": {}}}},
            "response_format",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "strict": "no"}}},
            "response_format",
        ),
        ({"response_format": FORM, "tools": TOOLS}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": NAMED}, "tool_choice"),
        ({"tool_choice": "look_up", "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": NAMED, "tools": [tool("look_up", {"type": "date"})]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 3}}]}, "tools"),
    ],
)
async def test_a_form_that_cannot_be_kept_is_refused_by_name(
    http: httpx.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await http.post("/v1/chat/completions", json=CHAT | body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


USE = ToolUse({"look_up": {}, "report": {}})
TEXTS = [
    (f'{OPENS}\n{{"name": "look_up", "arguments": {{"n": 1}}}}\n{CLOSES}', "", [Call("look_up", '{"n": 1}')]),
    (
        f'I see. {OPENS}{{"name": "look_up", "arguments": {{}}}}{CLOSES} {OPENS}{{"name": "report"}}{CLOSES}',
        "I see.",
        [Call("look_up", "{}"), Call("report", "{}")],
    ),
    ('{"name": "look_up", "parameters": {"n": 1}}', "", [Call("look_up", '{"n": 1}')]),
    ('[{"name": "look_up", "arguments": "{}"}, {"name": "report"}]', "", [Call("look_up", "{}"), Call("report", "{}")]),
    ('{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
    (f"{OPENS}no JSON{CLOSES}", f"{OPENS}no JSON{CLOSES}", []),
    ("a < b, <tool", "a < b, <tool", []),
    ("{ in set notation", "{ in set notation", []),
    ("", "", []),
]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("text", "beside", "calls"), TEXTS)
def test_calls_are_read_in_the_words_of_templates(text: str, beside: str, calls: list[Call], size: int) -> None:
    assert calls_in(text, USE) == (beside, calls)
    assert in_parts(text, USE, size) == (beside.strip(), calls)


def in_parts(text: str, use: ToolUse, size: int) -> tuple[str, list[Call]]:
    """Read a text that arrives in parts of `size` letters; no piece is empty, and none is shown twice."""
    reader = CallReader(use)
    parts = [reader.add(text[start : start + size]) for start in range(0, len(text), size)]
    parts.append(reader.end())
    calls: dict[int, Call] = {}
    for piece in (piece for part in parts for piece in part.pieces):
        if piece.name is not None:
            assert piece.index == len(calls)
            calls[piece.index] = Call(piece.name, "")
        else:
            assert piece.arguments
            before = calls[piece.index]
            calls[piece.index] = Call(before.name, before.arguments + piece.arguments)
    return "".join(part.text for part in parts).strip(), list(calls.values())


REQUIRED = ToolUse({"look_up": {}, "report": {}}, "required")
NESTED = '{"n": [1, {"a": "} \\" ]"}]}'
FORCED_TEXTS = [
    (f'[{{"name": "look_up", "parameters": {NESTED}}}]', [Call("look_up", NESTED)]),
    (
        '[{"name": "look_up", "parameters": {}}, {"name": "report", "parameters": {"b": 2}}]',
        [Call("look_up", "{}"), Call("report", '{"b": 2}')],
    ),
    # Cut off by max_tokens.
    ('[{"name": "look_up", "parameters": {"n": [1, 2', [Call("look_up", '{"n": [1, 2')]),
    ('[{"name": "look_', []),
]
FRAGMENTS = [OPENS, CLOSES, '{"name": "look_up", "arguments": ', "{", "}", "[", "]", '"', "\\", "a ", ",", "\n"]


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(("text", "calls"), FORCED_TEXTS)
def test_forced_calls_arrive_in_pieces_word_for_word(text: str, calls: list[Call], size: int) -> None:
    assert in_parts(text, REQUIRED, size) == ("", calls) == calls_in(text, REQUIRED)
    named = ToolUse({"look_up": {}}, "look_up")
    assert in_parts('{"n": 1', named, size) == ("", [Call("look_up", '{"n": 1')])


def test_arguments_are_shown_before_they_are_complete() -> None:
    reader = CallReader(USE)
    assert reader.add(f'Wait. {OPENS}\n{{"name": "look_up", "argu') == Part("Wait. ")
    assert reader.add('ments": {"n": ') == Part("", (Piece(0, "", "look_up"), Piece(0, '{"n": ')))
    assert reader.add("1}}") == Part("", (Piece(0, "1}"),))
    assert reader.has_calls


@pytest.mark.parametrize("text", ['{"answer": 1}', "{x | x > 0}", "[1, 2]", "[link](a)"])
def test_an_answer_that_begins_like_a_call_and_is_none_is_not_held_back(text: str) -> None:
    reader = CallReader(USE)
    assert reader.add(text[:-1]).text == text[:-1]


@settings(max_examples=200, deadline=None)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join),
    size=st.integers(1, 7),
    use=st.sampled_from([USE, REQUIRED]),
)
def test_any_text_reads_alike_in_parts_and_whole(text: str, size: int, use: ToolUse) -> None:
    beside, calls = calls_in(text, use)
    assert in_parts(text, use, size) == (beside.strip(), calls)
    assert use.forced or calls or beside == text


def test_a_strict_function_is_called_by_its_schema_where_the_model_calls_it(make_engine: Callable[..., Engine]) -> None:
    base = make_engine().base
    grammars = Grammars(base.tokenizer, 257, base.ends)
    use = ToolUse({"look_up": {"strict": True, "parameters": {"enum": [{"n": 1}]}}})
    assert use.is_strict
    grammar = grammars.of_calls(OPENS, use.openings(), f"}}\n{CLOSES}")
    right = f'Let me see. {OPENS}\n{{"name": "look_up", "arguments": {{"n": 1}}}}\n{CLOSES}'
    wrong = grammar.copy()

    def take(way: Grammar, text: str) -> None:
        for token in base.tokenizer.encode(text):
            way.take(token)

    take(grammar, right)
    with pytest.raises(BadGrammar):
        take(wrong, right.replace("1", "2"))


def test_references_of_two_functions_are_joined_or_refused() -> None:
    with_reference = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}
    both = ToolUse({"one": {"parameters": with_reference}, "two": {"parameters": with_reference}}, "required")
    schema = both.schema()
    assert schema is not None
    assert schema["$defs"] == with_reference["$defs"]
    clash = {"parameters": {**with_reference, "$defs": {"a": {"type": "integer"}}}}
    with pytest.raises(ValueError, match="'a' differently"):
        ToolUse({"one": {"parameters": with_reference}, "two": clash}, "required").schema()
