"""The OpenAPI document: a valid 3.1, with an example of every body that fits it, and the problems by status."""

from __future__ import annotations

from typing import Any

import pytest
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from adapterhub.embedded.options import DEFAULT_MODEL


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return SchemaGenerator().get_schema(request=None, public=True)


def test_it_is_valid(description: dict[str, Any]) -> None:
    faults = [
        f"{[*fault.absolute_path]}: {fault.message}" for fault in OpenAPIV31SpecValidator(description).iter_errors()
    ]
    assert faults == []


def test_every_body_has_an_example_that_fits(description: dict[str, Any]) -> None:
    shapes = description["components"]["schemas"]
    for path, item in description["paths"].items():
        for operation in item.values():
            content = operation.get("requestBody", {}).get("content", {})
            for kind in content.values():
                name = kind["schema"]["$ref"].rsplit("/", 1)[-1]
                assert "example" in shapes[name], f"{path}: {name} has no example: adapterhub/api/openapi/examples.py"
                whole = {**shapes[name], "components": description["components"]}
                faults = [fault.message for fault in Draft202012Validator(whole).iter_errors(shapes[name]["example"])]
                assert faults == [], name


def test_examples_name_the_base_model_that_the_demo_has(description: dict[str, Any]) -> None:
    examples = [shape.get("example", {}) for shape in description["components"]["schemas"].values()]
    named = [example[name] for example in examples for name in ("base", "base_model") if name in example]
    assert set(named) == {DEFAULT_MODEL}
    assert len(named) > 4


def test_problems_are_told_by_status(description: dict[str, Any]) -> None:
    promote = description["paths"]["/api/v1/rollouts/{id}/promote/"]["post"]
    assert {"401", "403", "404", "409", "412", "422", "429", "503"} <= set(promote["responses"])
    assert "application/problem+json" in promote["responses"]["412"]["content"]
    assert "If-Match" in [parameter["name"] for parameter in promote["parameters"]]
    assert "ETag" in description["paths"]["/api/v1/rollouts/{id}/"]["get"]["responses"]["200"]["headers"]


def test_lists_alone_have_filters_and_pages(description: dict[str, Any]) -> None:
    """A filter that a call does not heed is not offered there, and its answer is no page of a list."""
    calls = {
        f"{method} {path}": operation
        for path, item in description["paths"].items()
        for method, operation in item.items()
    }
    paged = {call for call, operation in calls.items() if "Paginated" in str(operation["responses"].get("200", ""))}
    assert {call for call, operation in calls.items() if "Paginated" in str(operation["responses"])} == paged
    with_cursor = {
        call
        for call, operation in calls.items()
        if "cursor" in [parameter["name"] for parameter in operation.get("parameters", ())]
    }
    assert with_cursor == paged
    of_state = calls["get /api/v1/clusters/{slug}/state/"]["parameters"]
    assert [parameter["name"] for parameter in of_state] == ["slug"]
