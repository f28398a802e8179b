"""What the OpenAPI description says of every call beside its own answers: the problem, the key, the retry."""

from __future__ import annotations

from typing import Any

PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `code` is stable; `detail` is for people; `errors` name the fields that are to blame.",
    "required": ["type", "title", "status", "code", "detail", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "code", "message"],
                "properties": {name: {"type": "string"} for name in ("field", "code", "message")},
            },
        },
    },
    "example": {
        "type": "urn:adapterhub:problem:invalid",
        "title": "Cannot be processed",
        "status": 422,
        "code": "invalid",
        "detail": "steps[0].weight: A valid number is required.",
        "errors": [{"field": "steps[0].weight", "code": "invalid", "message": "A valid number is required."}],
    },
}
PROBLEM_ANSWER = {
    "description": "A problem. 429 and 503 pass: Retry-After says when.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    "headers": {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds, with 429 and 503."}},
}
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "The same key and body have one effect and one answer; 409 `in_flight`, 422 `key_reused`.",
}


def with_null(schema: Any) -> Any:
    """The same in OpenAPI 3.1's words, also where DRF's pages and our own fragments speak those of 3.0."""
    if isinstance(schema, list):
        return [with_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: with_null(part) for name, part in schema.items()}
    # Any JSON is null already; named twice, null would fit both and so none.
    if schema.get("oneOf") == [{}, {"type": "null"}]:
        del schema["oneOf"]
    if schema.get("nullable") is True:
        del schema["nullable"]
        schema["type"] = [schema["type"], "null"]
    return schema


def tell_what_all_calls_share(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """drf-spectacular's hook after the description is made."""
    result["components"]["schemas"]["Problem"] = PROBLEM
    for path, item in result["paths"].items():
        for method, operation in item.items():
            if path.startswith("/api/v1/"):
                operation["responses"].setdefault("default", PROBLEM_ANSWER)
            if method == "post":
                operation.setdefault("parameters", []).append(KEY)
    return with_null(result)
