"""Headers and character sets whose parsing would take the square of their length, at every door of the web process."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from adapterhub.api.parsers import DEEPEST, deep_field_of
from adapterhub.core.errors import HeaderTooLong, UnsupportedCharset
from adapterhub.http.body_guard import BodyGuard
from adapterhub.http.heads import LONGEST_HEADER, require_head
from registry.models import Alias
from tests.builders.rest import client


def head(**headers: str) -> dict[str, Any]:
    return {"headers": [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]}


@pytest.mark.threat("D36")
@pytest.mark.parametrize("name", ["Accept", "Cookie", "Content_Type", "If_None_Match", "X_Anything"])
def test_a_header_without_end_is_refused_unread(name: str) -> None:
    with pytest.raises(HeaderTooLong, match=name.replace("_", "-").lower()):
        require_head(head(**{name: 'a/b; x="' + ";" * 60_000}))


@pytest.mark.threat("D36")
@pytest.mark.parametrize("charset", ["punycode", "idna", "zlib", "bz2", "utf-16", "undefined", "*=nope''x", ""])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_is_read_as_utf_8_alone(kind: str, charset: str) -> None:
    """Python decodes punycode and idna in the square of the length; zlib and bz2 are codecs that unpack."""
    with pytest.raises(UnsupportedCharset):
        require_head(head(Content_Type=f"{kind}; charset{'' if charset.startswith('*') else '='}{charset}"))


@pytest.mark.threat("D36")
@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=UTF-8", 'text/x; charset="utf-8"', ""])
def test_what_clients_send_is_read(kind: str) -> None:
    require_head(head(Content_Type=kind, Cookie="a" * LONGEST_HEADER))


@pytest.mark.threat("D36")
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content_Type": "text/plain; charset=punycode"}, 415, "unsupported_charset"),
        ({"Cookie": "a" * 10_000}, 431, "header_too_long"),
    ],
)
async def test_strangers_are_refused_at_the_border(headers: dict[str, str], status: int, code: str) -> None:
    """Before the application, which would decode it, and before anything is looked up."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def unreached(*_: Any) -> Any:
        pytest.fail("the application was asked")

    scope = {"type": "http", "method": "POST", "path": "/login/", **head(**headers)}
    with ThreadPoolExecutor(1) as threads:
        await BodyGuard(unreached, threads)(scope, unreached, send)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (status, code)


@pytest.mark.threat("D36")
def test_a_condition_of_spaces_is_read_at_once(ci: str, alias: Alias) -> None:
    api = client(ci)
    path = f"/api/v1/aliases/{alias.name}/"
    tag = api.get(path).headers["ETag"]
    began = time.thread_time()
    answer = api.get(path, headers={"If-None-Match": '"x"' + " " * 60_000 + '"y"'})
    assert (answer.status_code, answer.headers["ETag"]) == (200, tag)
    assert time.thread_time() - began < 1


@pytest.mark.threat("D36")
def test_a_text_without_end_is_passed_over_once() -> None:
    """A body that is nested too deeply is read again for the name of the field."""
    began = time.thread_time()
    for rest in ('"' + '\\"' * 1_900_000, '"' * 1_900_000, '"' + "\\" * 1_900_001):
        assert deep_field_of('{"tags": ' + rest) in ("tags", "")
        assert deep_field_of('{"tags": ' + "[" * (DEEPEST + 1) + rest) == "tags"
    assert time.thread_time() - began < 3
