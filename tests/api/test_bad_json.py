"""Every field of every call of REST with values of the wrong kind, and JSON that no client of good will sends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import resolve
from drf_spectacular.generators import SchemaGenerator

from adapterhub.accounts.models import User
from adapterhub.api.parsers import DEEPEST, LARGEST_FIELD, LONGEST_TEXT, deep_field_of
from adapterhub.audit.event_limits import KEPT, LARGEST_PART, shortened, shortened_text
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter
from tests.builders.rest import client, problem
from tests.builders.walk import body, files

HALF = "\ud800"
WRONG = {
    "a number": 5,
    "a negative": -1,
    "a giant": 10**40,
    "a fraction": 0.5,
    # Sent as 1e400, a number that JSON allows and that is infinite where it is read.
    "an overflow": "1e400",
    "true": True,
    "null": None,
    "an empty text": "",
    "a text": "x",
    "half a character": HALF,
    "a long text": "x" * (LONGEST_TEXT + 1),
    "an empty list": [],
    "a list": [5],
    "lists in lists": [[["x"]], [{}]],
    "an empty object": {},
    "an object": {"a": 5},
    "objects in objects": {"x": {"x": [{"x": None}]}, "weight": {"a": []}, "type": 5},
}
# Where values of any kind stand in values of any kind.
FREE = {"checks", "guardrails", "steps", "targeting", "policy", "hyperparameters", "prompts", "settings", "config"}
Call = tuple[str, str, dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def described() -> Any:
    return SchemaGenerator().get_schema(request=None, public=True)


def dereferenced(described: Any, schema: Any) -> Any:
    while "$ref" in schema:
        schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    for part in schema.get("allOf", schema.get("oneOf", []))[:1]:
        return dereferenced(described, part)
    return schema


def calls(described: Any, world: dict[str, Any], tmp_path: Path) -> Iterator[Call]:
    """Yield method, URL, fields and a good body of each call of the description that takes JSON."""
    for path, item in described["paths"].items():
        for method, operation in item.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json")
            url = content and filled(path, world)
            name = url and resolve(url).view_name
            if url and not files(name, tmp_path):
                fields = dereferenced(described, content["schema"]).get("properties", {})
                yield method.upper(), url, fields, body(name, tmp_path)


def filled(path: str, world: dict[str, Any]) -> str:
    """Return the path for the things of the world; nothing when it takes a thing that the world lacks."""
    kind = path.removeprefix("/api/v1/").split("/")[0]
    for name in re.findall(r"{(\w+)}", path):
        value = world.get("pk" if name == "id" else name, {}).get(kind)
        path = path.replace(f"{{{name}}}", str(value)) if value is not None else ""
    return path


def variants(described: Any, fields: dict[str, Any], base: dict[str, Any], of: int) -> Iterator[tuple[str, Any]]:
    """Yield what is wrong, and the body, for each wrong value in each field, and in each field of objects inside.

    With `of` n, each field gets one value of n, another share than its neighbour.
    """
    for place, (name, schema) in enumerate(fields.items()):
        for kind, value in some(WRONG, place, of):
            yield f"{name}: {kind}", {**base, name: value}
        yield f"{name}: too deep", {**base, name: nested(DEEPEST + 1)}
        inner = dereferenced(described, schema)
        in_list = inner.get("type") == "array"
        inner = dereferenced(described, inner.get("items", {})) if in_list else inner
        good = base.get(name)
        good = good[0] if in_list and good else good if isinstance(good, dict) else {}
        for inner_place, key in enumerate(inner.get("properties", {})):
            for kind, value in some(WRONG, place + inner_place, of):
                part = {**good, key: value}
                yield f"{name}.{key}: {kind}", {**base, name: [part] if in_list else part}


def some(values: dict[str, Any], place: int, of: int) -> list[tuple[str, Any]]:
    return [pair for number, pair in enumerate(values.items()) if (place + number) % of == 0]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def faults_of(described: Any, world: dict[str, Any], token: str, tmp_path: Path, of: int) -> tuple[list[str], int]:
    """Send one variant of `of`; return the faults (answers above 499, or of no field), and the count of calls."""
    api = Client(headers={"Authorization": f"Bearer {token}"}, raise_request_exception=False)
    faults, count = [], 0
    for method, url, fields, good in calls(described, world, tmp_path):
        for what, given in variants(described, fields, good, of):
            with transaction.atomic():
                sent = json.dumps(given).replace('"1e400"', "1e400")
                answer = api.generic(method, url, sent, "application/json")
                transaction.set_rollback(True)
            count += 1
            named = [error["field"] for error in answer.json()["errors"]] if answer.status_code == 422 else ["x"]
            if (answer.status_code >= 500 and answer.status_code != 503) or not any(named):
                faults.append(f"{method} {url} {what}: {answer.status_code}")
    return faults, count


@pytest.mark.slow
@pytest.mark.threat("D19")
def test_no_field_of_any_call_makes_a_fault_of_ours(
    described: Any, world: dict[str, Any], ci: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    faults, count = faults_of(described, world, ci, tmp_path, of=1 if pytestconfig.getoption("soak") else 3)
    assert faults == []
    assert count > 1000


@pytest.mark.slow
@pytest.mark.threat("D19")
def test_every_call_refuses_a_field_that_it_does_not_know(
    described: Any, world: dict[str, Any], ci: str, tmp_path: Path
) -> None:
    """A misspelt field would else be left out in silence; calls that the token may not make say so first."""
    api = Client(headers={"Authorization": f"Bearer {ci}"}, raise_request_exception=False)
    accepted, count = [], 0
    for method, url, _, good in calls(described, world, tmp_path):
        with transaction.atomic():
            answer = api.generic(method, url, json.dumps({"eval_datasett": 1, **good}), "application/json")
            transaction.set_rollback(True)
        if answer.status_code in (401, 403, 404):
            continue
        count += 1
        named = [error["field"] for error in answer.json()["errors"]] if answer.status_code == 422 else []
        if named != ["eval_datasett"]:
            accepted.append(f"{method} {url}: {answer.status_code} {named}")
    assert accepted == []
    assert count > 40


@pytest.mark.threat("D19")
@pytest.mark.parametrize("depth", [DEEPEST + 2, 500, 2000, 100_000])
def test_json_that_is_nested_without_end_is_422_with_its_field(ci: str, adapter: Adapter, depth: int) -> None:
    for deep in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        text = f'{{"project": "eu", "slug": "n", "base_model": "tiny", "de[s\\"c": "{{[", "tags": {deep}}}'
        answer = client(ci).generic("POST", "/api/v1/adapters/", text, content_type="application/json")
        assert problem(answer, 422, "too_deep")["errors"][0]["field"] in ("tags", "tags.a")


def test_the_field_is_found_in_texts_of_any_kind() -> None:
    deep = "[" * (DEEPEST + 1)
    assert deep_field_of(f'{{"a": [1], "b\\u0041": {{"c": {deep}') == "bA.c"
    assert deep_field_of(deep) == ""


@pytest.mark.threat("D19")
@pytest.mark.parametrize("given", [{"description": HALF}, {"tags": [f"a{HALF}"]}, {"tags": [{f"a{HALF}": 1}]}])
def test_half_a_character_is_422_with_its_field(ci: str, adapter: Adapter, given: dict[str, Any]) -> None:
    body = {"project": "eu", "slug": "n", "base_model": "tiny", **given}
    answer = client(ci).generic("POST", "/api/v1/adapters/", json.dumps(body), content_type="application/json")
    [error] = problem(answer, 422, "surrogate_characters_not_allowed")["errors"]
    assert error["field"] in given


@pytest.mark.threat("D19")
@pytest.mark.parametrize("number", ["1e400", "-1e400", '[{"maximum": 1e999}]'])
def test_a_number_without_end_is_422_with_its_field(ci: str, adapter: Adapter, number: str) -> None:
    """Python reads it as infinite, and Postgres stores none in JSON."""
    text = f'{{"project": "eu", "slug": "n", "base_model": "tiny", "tags": {number}}}'
    answer = client(ci).generic("POST", "/api/v1/adapters/", text, content_type="application/json")
    assert problem(answer, 422, "number_too_large")["errors"][0]["field"] == "tags"


@pytest.mark.threat("D20")
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_text_that_would_fill_the_trail_is_refused(ci: str, adapter: Adapter, method: str) -> None:
    url = "/api/v1/adapters/" if method == "POST" else f"/api/v1/adapters/{adapter.slug}/"
    before = AuditEvent.objects.count()
    for given in ({"description": "x" * 3_900_000}, {"description": "x" * 10_001}, {"tags": ["x" * 100] * 3000}):
        identity = {"project": "eu", "slug": "n", "base_model": "tiny"} if method == "POST" else {}
        body = {**identity, **given}
        answer = client(ci).generic(method, url, json.dumps(body), content_type="application/json")
        [error, *_] = answer.json()["errors"]
        assert (answer.status_code, error["field"].partition("[")[0]) == (422, *given), error
    events = AuditEvent.objects.filter(tag__startswith="adapter:")
    assert events.count() == 1
    assert AuditEvent.objects.count() == before


@pytest.mark.threat("D20")
@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"description": "x" * (LONGEST_TEXT + 1)}, "text_too_long"),
        ({"tags": [{"a": "x" * (LONGEST_TEXT + 1)}]}, "text_too_long"),
        ({"tags": ["x" * 1000] * (LARGEST_FIELD // 1000)}, "field_too_large"),
    ],
)
def test_each_bound_of_texts_holds_by_itself(ci: str, adapter: Adapter, given: dict[str, Any], code: str) -> None:
    """Also where a field has no bound of its own, as those of free JSON."""
    body = {"project": "eu", "slug": "n", "base_model": "tiny", **given}
    [error] = problem(client(ci).post("/api/v1/adapters/", body), 422, code)["errors"]
    assert error["field"] in given


@pytest.mark.threat("D20")
def test_what_reaches_the_trail_by_another_door_is_shortened(adapter: Adapter, alice: User) -> None:
    """Commands and the admin pages write events, too. Nothing is dropped in silence: its length and hash stay."""
    with transaction.atomic():
        event = AuditEvent.record(
            "adapter:changed",
            adapter,
            by=alice.as_actor(),
            project=adapter.project,
            reason="r" * 30_000,
            after={"text": "x" * 3_900_000, "list": [1, {"inner": "y" * 20_001}]},
        )
    stored = AuditEvent.objects.get(pk=event.pk)
    assert stored.reason.startswith("r" * KEPT + "... (30000 characters in all, sha256 ")
    assert stored.after["text"].startswith("x" * KEPT + "... (3900000 characters in all, sha256 ")
    assert "20001 characters" in stored.after["list"][1]["inner"]
    many = shortened({"a": list(range(LARGEST_PART))})
    assert many is not None
    assert many["shortened"]["fields"] == ["a"]
    assert shortened_text("x" * 20_000) == "x" * 20_000


def test_the_limits_of_texts_stay_below_those_of_the_trail() -> None:
    assert shortened_text("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    assert LARGEST_FIELD <= LARGEST_PART


@pytest.mark.threat("D19")
@pytest.mark.parametrize("name", [HALF, "nul\0", "deep"])
@pytest.mark.parametrize("verb", ["", "check/"])
def test_a_dataset_with_hostile_names_makes_no_fault_of_ours(ci: str, adapter: Adapter, name: str, verb: str) -> None:
    """Names of columns and of parts of messages are told in notices and kept with the dataset."""
    deep = json.loads("[" * 900 + "]" * 900)
    lines = []
    for number in range(60):
        talk = [{"role": "user", "content": f"q {number}", name: 1}, {"role": "assistant", "content": "a"}]
        lines.append(json.dumps({"messages": talk, name: deep if name == "deep" else f"x{number}"}))
    lines.append('{"messages": ' + "[" * 100_000)
    for rows in (lines[:-1], lines, [json.dumps({name: "x", "other": HALF})] * 30):
        file = SimpleUploadedFile("rows.jsonl", "\n".join(rows).encode())
        answer = client(ci).post(f"/api/v1/datasets/{verb}", {"project": "eu", "file": file}, format="multipart")
        assert answer.status_code in (200, 201, 422), answer.content


@pytest.mark.threat("D19")
@pytest.mark.parametrize(
    "text",
    [
        '{"project": "eu", "slug": "first", "base_model": "tiny", "slug": "second"}',
        '{"project": "eu", "slug": "second", "base_model": "tiny", "description": [{"a": 1, "slug": 1, "slug": 2}]}',
    ],
)
def test_a_name_that_is_there_twice_is_refused(ci: str, adapter: Adapter, text: str) -> None:
    answer = client(ci).generic("POST", "/api/v1/adapters/", text, "application/json")
    (error,) = problem(answer, 422, "duplicate_name")["errors"]
    assert (error["field"], error["code"], Adapter.objects.count()) == ("slug", "duplicate_name", 1)


def test_a_field_of_a_form_that_is_there_twice_is_refused(ci: str, adapter: Adapter) -> None:
    """A list takes its field as often as it comes."""
    body = {"project": "eu", "slug": ["first", "second"], "base_model": "tiny"}
    answer = client(ci).post("/api/v1/adapters/", body, format="multipart")
    assert problem(answer, 422, "duplicate_name")["errors"][0]["field"] == "slug"
    body = {"project": "eu", "slug": "other", "base_model": "tiny", "tags": ["a", "b"]}
    answer = client(ci).post("/api/v1/adapters/", body, format="multipart")
    assert (answer.status_code, answer.json()["tags"]) == (201, ["a", "b"])


@pytest.mark.threat("D19")
@pytest.mark.parametrize(
    "mapping",
    [
        '{"text": "a", "text": "b"}',
        "[" * 100_000,
        '{"text": "\\ud800"}',
        '{"text": "\\u0000"}',
        '{"\\ud800": "a"}',
        "5",
    ],
)
def test_json_in_a_form_is_bounded_too(ci: str, adapter: Adapter, mapping: str) -> None:
    file = SimpleUploadedFile("rows.jsonl", b'{"text": "x"}\n' * 30)
    body = {"project": "eu", "file": file, "mapping": mapping}
    answer = client(ci).post("/api/v1/datasets/", body, format="multipart")
    assert (answer.status_code, answer.json()["errors"][0]["field"].partition(".")[0]) == (422, "mapping")


@pytest.mark.parametrize(("reason", "status"), [("", 422), ("x" * 2000, 200), ("x" * 2001, 422), ("a\0", 422)])
def test_a_reason_on_a_page_is_kept_whole_or_refused(alice: User, reason: str, status: int) -> None:
    page = Client()
    page.force_login(alice)
    assert page.post("/sessions/", {"reason": reason}).status_code == status


@pytest.mark.threat("D19")
def test_a_form_of_which_nothing_has_a_name_is_no_empty_one(ci: str, adapter: Adapter) -> None:
    """It was read as a body without fields, and a run was cancelled by it."""
    kind = 'multipart/form-data; boundary="b"'
    for content in (b"--b\r\n308--b--\r\n", b"--b\r\nContent-Type: a/b\r\n\r\n308\r\n--b--\r\n"):
        answer = client(ci).generic("PATCH", "/api/v1/adapters/dora/", content, kind)
        assert "no part with a name" in problem(answer, 422, "invalid")["detail"]
    assert client(ci).generic("PATCH", "/api/v1/adapters/dora/", b"--b--\r\n", kind).status_code == 200


@pytest.mark.threat("D19")
@pytest.mark.parametrize("query", ["as_chat=maybe", "as_chat=", "as_chat=1", "loss=", "loss=x", "max_length=x"])
def test_a_parameter_of_the_wrong_kind_is_refused_where_it_changes_nothing(ci: str, dataset: Any, query: str) -> None:
    """Without a base model, nothing is rendered."""
    refused = problem(client(ci).get(f"/api/v1/datasets/{dataset.pk}/preview/?{query}"), 422, "invalid")
    assert refused["errors"][0]["field"] == query.partition("=")[0]
    assert client(ci).get(f"/api/v1/datasets/{dataset.pk}/preview/?as_chat=true&loss=answers").status_code == 200
