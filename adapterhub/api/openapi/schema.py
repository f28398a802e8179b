"""The parts of the OpenAPI description that all calls share: problems, idempotency key, retry and ETag headers."""

from __future__ import annotations

from typing import Any

from adapterhub.api.openapi.examples import EXAMPLES

PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `code` is stable, `detail` is for people, and `errors` names the invalid fields.",
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
                "properties": {name: {"type": "string"} for name in ("field", "code", "message", "route")},
            },
        },
    },
    "example": {
        "type": "urn:adapterhub:problem:invalid",
        "title": "Cannot be processed",
        "status": 422,
        "code": "invalid",
        "detail": "steps[0].weight must be a number.",
        "errors": [{"field": "steps[0].weight", "code": "invalid", "message": "steps[0].weight must be a number."}],
    },
}
PROBLEM_ANSWER = {
    "description": "A problem. After 429 or 503, retry when Retry-After says.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    "headers": {"Retry-After": {"schema": {"type": "string"}, "description": "Seconds, with 429 and 503."}},
}
KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 255, "pattern": "^[!-~]+$"},
    "description": "One key and body have one effect and one answer; otherwise 409 `in_flight` or 422 `key_reused`.",
}


def with_null(schema: Any) -> Any:
    """Return the schema with nullable fields in the form of OpenAPI 3.1; DRF and our fragments give that of 3.0.

    Empty defaults are left out.
    """
    if isinstance(schema, list):
        return [with_null(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: with_null(part) for name, part in schema.items()}
    # `required` says what is optional; an empty text as the default would often be a value that may not be sent.
    if schema.get("default") == "":
        del schema["default"]
    # Any JSON includes null; listed twice, null would match both and so violate oneOf.
    if schema.get("oneOf") == [{}, {"type": "null"}]:
        del schema["oneOf"]
    if schema.get("nullable") is True:
        del schema["nullable"]
        schema["type"] = [schema["type"], "null"]
    return schema


IF_MATCH = {
    "name": "If-Match",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "maxLength": 200},
    "description": "The ETag of the state to change; 412 `precondition_failed` if the object has changed since.",
}
ETAG = {
    "ETag": {
        "schema": {"type": "string"},
        "description": "The tag of the current state, for If-Match and If-None-Match.",
    }
}
ROLLOUT = "/api/v1/rollouts/{id}/"
# Resources whose state changes, and the changes of them that If-Match guards.
STATES = (ROLLOUT, "/api/v1/aliases/{name}/", "/api/v1/adapters/{slug}/")
GUARDED = {
    *(
        (f"{ROLLOUT}{verb}/", "post")
        for verb in ("start", "discard", "pause", "resume", "set-weight", "promote", "rollback", "advance")
    ),
    (ROLLOUT, "patch"),
    ("/api/v1/aliases/{name}/move/", "post"),
    ("/api/v1/aliases/{name}/", "patch"),
    ("/api/v1/adapters/{slug}/", "patch"),
}
# Calls whose effect the routers must hear of.
PUBLISHED = (
    "/api/v1/aliases/",
    "/api/v1/rollouts/",
    "/api/v1/tokens/",
    "/api/v1/clusters/",
    "/api/v1/replicas/",
    "/api/v1/approvals/",
    "/api/v1/projects/",
    "/api/v1/service-accounts/",
)
UNPUBLISHED = {
    "description": "Committed, but Valkey does not answer: the routers follow once it does. `published` is false.",
    "content": {
        "application/json": {
            "schema": {"type": "object", "properties": {"published": {"type": "boolean"}}, "required": ["published"]}
        }
    },
}
UNCHANGED = {"description": "If-None-Match names the current state: nothing has changed.", "headers": ETAG}
REFUSALS = {
    "401": "No token, or one that is unknown, expired or revoked: `not_authenticated`, `authentication_failed`.",
    "403": "The caller must not do this: `scope_missing`, `not_allowed`, `approval_missing`, `alias_protected`.",
    "404": "The object does not exist, or the caller cannot see it: `not_found`.",
    "409": "The state does not allow this, or another request came first: `invalid_transition`, `in_flight`, ...",
    "412": "If-Match names an earlier state: `precondition_failed`.",
    "413": "The body is too large.",
    "422": "The request is well formed but invalid; `errors` names the fields: `invalid`, `key_reused`, `bad_...`.",
    "429": "Too many requests: `throttled`. Retry-After says when.",
    "503": "Another service does not respond; nothing was changed: `unavailable`. Retry-After says when.",
}


def refusals(path: str, method: str) -> dict[str, Any]:
    """Return the problem responses that the call can have, by status; in them `code` tells the problems apart.

    `path` is that of the description, with placeholders, and `method` in lower case.
    """
    named = {"401", "403", "404", "422", "429", "503"}
    named |= set() if method == "get" else {"409", "413"}
    named |= {"412"} if (path, method) in GUARDED else set()
    return {status: {**PROBLEM_ANSWER, "description": REFUSALS[status]} for status in sorted(named)}


def tell_of_states(path: str, item: dict[str, Any]) -> None:
    """Add ETags and conditional requests, in place, to those operations of the path that have them.

    `item` is the path's entry in the description, which maps methods to operations.
    """
    if path in STATES:
        item["get"]["responses"]["200"]["headers"] = ETAG
        item["get"]["responses"]["304"] = UNCHANGED
    for method, operation in item.items():
        if (path, method) in GUARDED:
            operation.setdefault("parameters", []).append(IF_MATCH)


def tell_what_all_calls_share(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """Add the problems, examples, headers and statuses that calls share to the description, and return it.

    It is a post-processing hook of drf-spectacular, which passes the description as `result`; the rest is not used.
    """
    result["components"]["schemas"]["Problem"] = PROBLEM
    for name, example in EXAMPLES.items():
        if name in result["components"]["schemas"]:
            result["components"]["schemas"][name]["example"] = example
    for path, item in result["paths"].items():
        for method, operation in item.items():
            if path.startswith("/api/v1/"):
                operation["responses"] |= refusals(path, method) | {"default": PROBLEM_ANSWER}
            if method != "get" and path.startswith(PUBLISHED):
                operation["responses"].setdefault("202", UNPUBLISHED)
            if method == "post":
                operation.setdefault("parameters", []).append(KEY)
        tell_of_states(path, item)
    described: dict[str, Any] = with_null(result)
    return described
