"""Each operation of the OpenAPI description, as a stranger calls it, and each filter of each list, towards a tenant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from drf_spectacular.generators import SchemaGenerator

from adapterhub.accounts.models import User
from tests.api.rights import signed_in

METHODS = ("get", "post", "patch", "put", "delete")
# Base models belong to the installation: every member of any project sees them.
SHARED = {"/api/v1/base-models/"}


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    return SchemaGenerator().get_schema(request=None, public=True)["paths"]


def operations(paths: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield method, address and description of each operation; a number fits each parameter of a path."""
    for path, item in paths.items():
        for method in METHODS:
            if method in item:
                yield method, re.sub(r"\{\w+\}", "1", path), item[method]


@pytest.mark.threat("A5")
def test_a_stranger_may_call_no_operation(db: None, paths: dict[str, Any]) -> None:
    stranger = Client(raise_request_exception=False)
    calls = list(operations(paths))
    answers = {
        f"{method} {url}": stranger.generic(method.upper(), url, "{}", "application/json").status_code
        for method, url, _ in calls
    }
    assert len(calls) > 80
    assert {call: status for call, status in answers.items() if status not in (401, 404)} == {}
    assert [call for call, status in answers.items() if status == 404 and "{" not in call and "/1/" not in call] == []


@pytest.mark.threat("A5")
@pytest.mark.slow
def test_no_filter_shows_a_row_of_another_project(
    project: Any, cluster: Any, alias: Any, charlie: User, paths: dict[str, Any]
) -> None:
    """`project=eu` and each other filter with a value of the other project, alone."""
    outsider = signed_in(charlie)
    values = {
        "project": "eu",
        "adapter": "dora",
        "alias": "compliance",
        "cluster": "cpu",
        "base_model": "tiny",
        "version": alias.version.served_name,
        "digest": alias.version.digest,
        "status": "ready",
    }
    wrong = []
    for method, url, operation in operations(paths):
        names = [given["name"] for given in operation.get("parameters", []) if given["in"] == "query"]
        if method != "get" or "/1/" in url or url in SHARED:
            continue
        for query in [{}, *({name: values.get(name, "1")} for name in names if name not in ("cursor", "page_size"))]:
            answer = outsider.get(url, query)
            text = b"".join(answer.streaming_content) if answer.streaming else answer.content
            if answer.status_code == 200 and re.search(rb'"(eu|dora|compliance|cpu)"|\bdora\.v', text):
                wrong.append(f"{url} {query}")
    assert wrong == []
