"""The meaning of each name in the OpenAPI description, so that another project's things can be put in its place.

A kind is a key of `Tenant.names`. A parameter or field that no table names fails the matrix with its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from training.models.hyperparameters import TABLE

METHODS = ("get", "post", "put", "patch", "delete")

# Resource and parameter of a path -> the kind of object that it names.
OF_PATH = {
    "adapters {slug}": "adapter",
    "adapters {number}": "number",
    "aliases {name}": "alias",
    "approvals {id}": "approval",
    "audit {id}": "event",
    "blind-tests {id}": "blind test",
    "clusters {slug}": "cluster",
    "compressions {id}": "compression",
    "datasets {id}": "dataset",
    "deliveries {id}": "delivery",
    "erasures {id}": "erasure",
    "evaluations {id}": "evaluation",
    "invitations {id}": "invitation",
    "projects {slug}": "project",
    "rank-analyses {id}": "analysis",
    "replicas {id}": "replica",
    "responses {id}": "response",
    "rollouts {id}": "rollout",
    "tokens {id}": "token",
    "training-runs {id}": "run",
    "webhooks {id}": "webhook",
    # Base models belong to the installation: every member of any project sees them.
    "base-models {slug}": "",
}
# Query parameter or field of a body -> kind; NEW_NAME before it where the caller chooses the name of a new object, and
# "" where it names nothing of a project. A key may begin with the resource, or with method and path.
NEW_NAME = "new "
NAMES = (
    {
        "account": "account",
        "actor_name": "user",
        "adapter": "adapter",
        "against": "candidate",
        "alias": "alias",
        "candidate": "candidate",
        "cluster": "cluster",
        "dataset": "dataset",
        "expected_version": "version",
        "folder": "folder",
        "object_id": "rollout",
        "owner": "user",
        "project": "project",
        "rank_analysis": "analysis",
        "request_id": "request",
        "response_id": "response",
        "rollout": "rollout",
        "stable": "version",
        "upload": "upload",
        "user": "user",
        "validation_dataset": "dataset",
        "version": "version",
        "versions": "number",
        "webhook": "webhook",
        "adapters digest": "version digest",
        "adapters to": "number",
        "compressions source": "version",
        "datasets digest": "dataset digest",
        "datasets name": "dataset name",
        "mixture.dataset": "dataset",
        "projects name": "account",
        "projects slug": "project",
        "service-accounts name": "account",
        "tokens name": "token name",
        "training-runs to": "run",
        "base-models slug": "",
        "base-models source": "",
        "post /adapters/ slug": NEW_NAME + "adapter",
        "post /aliases/ name": NEW_NAME + "alias",
        "post /clusters/ slug": NEW_NAME + "cluster",
        "post /clusters/{slug}/grants/ project": NEW_NAME + "project",
        "post /clusters/{slug}/grants/withdraw/ project": "grantee",
        "patch /clusters/{slug}/grants/ project": "grantee",
        "patch /replicas/{id}/ url": "address",
        "post /datasets/ name": NEW_NAME + "dataset name",
        "post /datasets/check/ name": NEW_NAME + "dataset name",
        "post /plans/ adapter": "",
        "post /plans/ cluster": "",
        "post /plans/ rollout": "",
        "post /projects/ name": NEW_NAME + "project",
        "post /projects/ slug": NEW_NAME + "project",
        "post /projects/{slug}/invitations/ address": NEW_NAME + "user",
        "post /projects/{slug}/invitations/revoke/ id": "sent invitation",
        "post /replicas/ url": "address",
        "post /service-accounts/ name": NEW_NAME + "short account",
        "post /tokens/ name": NEW_NAME + "token name",
    }
    | dict.fromkeys(
        """
    adapter.description adapter.slug adapter.tags adapter_config adapter_model after also_named anyway archive as
    as_chat at base base_model before budget budget.bytes budget.max_rank budget.parameters budget.uniform_rank
    cluster.discovery cluster.engine cluster.max_lora_rank cluster.max_loras cluster.routing cluster.slug
    checks checks.format checks.judge checks.judge.instruction checks.judge.sample checks.refusal checks.schema
    columns config confirm confirm_base conversions created_after created_before cursor default description
    device_gb draft dtype encoding engine engine_key escape events expected_generation expires_at file filename fold
    discovery format gates gates.loss_below gates.no_worse gates.quorum gates.tasks
    gates.tasks.at_least gates.tasks.task guardrails guardrails.kind guardrails.level
    guardrails.margin guardrails.metric header hold hyperparameters is_healthy keep keeps_general_skill keeps_merged
    kind least_latency letter limits limits.requests_per_s limits.tokens_per_min log_from loss
    many_adapters mapping max_length max_lora_rank max_loras max_tokens
    meaning method mixture mixture.weight named_versions object_type outcome page_size password pattern policy
    preset priority prompts quantum rank_max rank_min reason requests_per_s retention revision role rollout.alias
    rollout.cluster rollout.guardrails rollout.guardrails.kind rollout.guardrails.level rollout.guardrails.margin
    rollout.guardrails.metric rollout.reason rollout.steps rollout.steps.approval rollout.steps.hold_s routing
    rollout.steps.min_samples rollout.steps.shadow rollout.steps.weight samples scopes score seen settings sha256
    size slots source source_sha256 split start_values status steps steps.approval steps.hold_s steps.min_samples
    steps.shadow steps.weight tag tags targeting targeting.allow targeting.deny targeting.holdout task
    tokens_per_min type url variant variant_of weight by since until
    """.split(),  # noqa: SIM905 (a table)
        "",
    )
    | dict.fromkeys((f"hyperparameters.{name}" for name in TABLE), "")
)
# Differences between another project's name and one that exists nowhere which are meant, with the reason.
MEANT = {
    **dict.fromkeys(
        (f"post /plans/ {name}" for name in ("dataset", "mixture.dataset", "validation_dataset", "version")),
        "a plan is answered with 200, and names in its refusals what it does not find",
    ),
    **dict.fromkeys(
        ("post /replicas/ url", "patch /replicas/{id}/ url"),
        "one engine serves one cluster, whoever owns it; the refusal names no project (threat A2)",
    ),
}
# Things that only people have: to a token each is as one that exists nowhere.
OF_PEOPLE = {"post /invitations/{id}/accept/ {id}", "post /invitations/{id}/decline/ {id}"}
# Queries that a tenant sends besides. Some are refused after the object was looked up, which spares a child process.
QUERIES: dict[str, dict[str, Any]] = {
    "get /adapters/{slug}/versions/{number}/compare/": {"to": "none"},
    "get /adapters/{slug}/versions/{number}/export/": {"format": "none"},
    "get /audit/events/": {"project": "@project"},
    "get /audit/export/": {"project": "@project"},
    "get /audit/verify/": {"project": "@project"},
    "delete /clusters/{slug}/": {"reason": "x"},
    "delete /replicas/{id}/": {"reason": "x", "confirm": "true"},
    "get /datasets/lookup/": {"project": "@project", "sha256": "0" * 64, "filename": "rows.jsonl"},
}
# Where a field inside others stands in a body.
INSIDE = {"mixture.dataset": lambda value: {"mixture": [{"dataset": value, "weight": 1}]}}
# A body that the call takes from a tenant who names only objects of their own; `@kind` is the name of theirs. Calls
# that are not here take their reason, or nothing.
STEPS = [{"weight": 1}]
BUDGET = {"uniform_rank": 4}
RUN = {"project": "@project", "adapter": "@adapter", "dataset": "@dataset", "rank_analysis": "@analysis"}
BODIES: dict[str, list[dict[str, Any]]] = {
    "post /adapters/": [{"project": "@project", "slug": "fresh", "base_model": "tiny"}],
    "patch /adapters/{slug}/": [{"description": "another"}],
    "post /adapters/{slug}/versions/": [
        {"adapter_model": "@weights", "adapter_config": "@config"},
        {"folder": "@folder"},
    ],
    "post /adapters/{slug}/versions/{number}/compress/": [{"budget": {"uniform_rank": 2}, "dataset": "@dataset"}],
    "post /adapters/{slug}/versions/check/": [{"adapter_config": "@config", "header": "@header", "size": 0}],
    "post /advisor/": [{"base_model": "tiny", "dataset": "@dataset"}],
    "post /aliases/": [{"project": "@project", "name": "fresh", "cluster": "@cluster", "version": "@version"}],
    "patch /aliases/{name}/": [{"default": True, "reason": "x"}],
    "post /aliases/{name}/move/": [{"version": "@candidate", "expected_version": "@version", "reason": "x"}],
    "post /approvals/": [
        {"rollout": "@rollout", "reason": "x"},
        {"alias": "@alias", "policy": {"quorum": 2}, "reason": "x"},
    ],
    "post /base-models/": [{"slug": "fresh", "version": "@version"}],
    "post /blind-tests/": [{"adapter": "@adapter", "versions": [1, "@number"], "prompts": ["the bank"]}],
    "post /blind-tests/{id}/vote/": [{"letter": "A"}],
    "post /clusters/": [{"project": "@project", "slug": "fresh", "base_model": "tiny"}],
    "patch /clusters/{slug}/": [{"max_loras": 9, "reason": "x"}],
    "post /clusters/{slug}/grants/": [{"project": "far"}],
    "patch /clusters/{slug}/grants/": [{"project": "@grantee", "slots": 1, "reason": "x"}],
    "post /clusters/{slug}/grants/withdraw/": [{"project": "@grantee", "reason": "x"}],
    "post /datasets/": [{"project": "@project", "name": "fresh", "file": "@file"}],
    "post /datasets/check/": [{"project": "@project", "name": "fresh", "file": "@file"}],
    "post /datasets/{id}/keep/": [{"hold": True, "reason": "x"}],
    "post /estimates/": [{"base_model": "tiny"}],
    "post /evaluations/": [
        {"project": "@project", "version": "@version", "against": "@candidate", "dataset": "@dataset"}
    ],
    "post /feedback/": [{"response_id": "@response", "score": 1}],
    "post /plans/": [{"project": "@project", "adapter": {"slug": "fresh"}, "base": "tiny"}],
    "post /projects/": [{"slug": "fresh", "name": "fresh"}],
    "patch /projects/{slug}/": [{"named_versions": "any", "reason": "x"}],
    "post /projects/{slug}/invitations/": [{"address": "somebody", "role": "viewer"}],
    "post /projects/{slug}/invitations/revoke/": [{"id": "@sent invitation", "reason": "x"}],
    "post /projects/{slug}/members/": [{"user": "@user", "role": "viewer"}],
    "post /projects/{slug}/members/revoke/": [{"user": "@user", "role": "trainer"}],
    "post /projects/{slug}/service-accounts/close/": [{"name": "@account"}],
    "post /projects/{slug}/service-accounts/hand-over/": [{"name": "@account", "owner": "@user", "reason": "x"}],
    "post /rank-analyses/": [{"project": "@project", "base_model": "tiny", "dataset": "@dataset", "budget": BUDGET}],
    "post /rank-analyses/{id}/reallocate/": [{"budget": BUDGET}],
    "post /replicas/": [{"cluster": "@cluster", "url": "http://127.0.0.1:1998"}],
    "patch /replicas/{id}/": [{"url": "http://127.0.0.1:1997", "reason": "x"}],
    "post /rollouts/": [{"alias": "@alias", "candidate": "@candidate", "steps": STEPS, "reason": "x"}],
    "patch /rollouts/{id}/": [{"steps": STEPS, "reason": "x"}],
    "post /rollouts/{id}/set-weight/": [{"weight": 1, "reason": "x"}],
    "post /service-accounts/": [{"project": "@project", "name": "fresh", "role": "viewer"}],
    "patch /tokens/{id}/": [{"requests_per_s": 5, "reason": "x"}],
    "post /tokens/": [{"project": "@project", "name": "fresh", "scopes": ["read"], "account": "@account"}],
    "post /training-runs/": [RUN],
    "post /training-runs/preflight/": [RUN],
    "post /training-runs/{id}/clone/": [{"priority": 1}],
    "post /training-runs/{id}/keep/": [{"hold": True, "reason": "x"}],
    "post /webhooks/": [{"project": "@project", "url": "https://hook.example/", "events": ["token:*"]}],
}


@dataclass(frozen=True)
class Operation:
    """A method and path of the description, with the names that it takes; paths are without `/api/v1`."""

    method: str
    path: str
    query: dict[str, Any]
    fields: list[str]
    required: set[str]

    @property
    def key(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def resource(self) -> str:
        return self.path.split("/")[1]

    @property
    def of_path(self) -> list[str]:
        return re.findall(r"\{\w+\}", self.path)

    def kind(self, name: str) -> str | None:
        """Return the kind of what a parameter or field names; None if no table knows it."""
        if name.startswith("{"):
            return OF_PATH.get(f"{self.resource} {name}")
        keys = (f"{self.key} {name}", f"{self.resource} {name}", name)
        return next((NAMES[key] for key in keys if key in NAMES), None)

    def bodies(self) -> list[dict[str, Any]]:
        """Return the bodies that a tenant sends: those of the table, or a reason where the call takes one."""
        return BODIES.get(self.key, [{"reason": "x"} if "reason" in self.fields else {}])

    def faults(self) -> list[str]:
        """Return what the tables lack to try this operation."""
        names = [*self.of_path, *self.query, *self.fields]
        wrong = [f"{self.key}: say in tests/security/matrix.py what {name!r} names" for name in names]
        wrong = [fault for fault, name in zip(wrong, names, strict=True) if self.kind(name) is None]
        if not any(self.required <= body.keys() for body in self.bodies()):
            wrong.append(f"{self.key}: give tests/security/matrix.py a body with {sorted(self.required)}")
        return wrong


def operations(description: dict[str, Any]) -> Iterator[Operation]:
    """Yield every operation of the OpenAPI description."""
    schemas = description["components"]["schemas"]
    for path, item in description["paths"].items():
        for method in METHODS:
            if method in item:
                given = item[method].get("parameters", [])
                query = {each["name"]: each["schema"] for each in given if each["in"] == "query"}
                contents = item[method].get("requestBody", {}).get("content", {}).values()
                shapes = [resolved(content["schema"], schemas) for content in contents]
                fields = sorted({name for shape in shapes for name in fields_of(shape, schemas)})
                required = set(shapes[0].get("required", [])) if shapes else set()
                yield Operation(method, path.removeprefix("/api/v1"), query, fields, required)


def resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that a reference leads to."""
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return schema


def fields_of(schema: dict[str, Any], schemas: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the path of every field, those of nested objects and of lists' items included."""
    schema = resolved(schema, schemas)
    for part in (*schema.get("allOf", ()), *schema.get("oneOf", ()), *schema.get("anyOf", ())):
        yield from fields_of(part, schemas, prefix)
    if "items" in schema:
        yield from fields_of(schema["items"], schemas, prefix)
    for name, field in schema.get("properties", {}).items():
        yield prefix + name
        yield from fields_of(field, schemas, f"{prefix}{name}.")
