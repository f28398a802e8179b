"""Every route of the URL configuration, and a request that each of them takes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.apps import apps
from django.core.files.uploadedfile import SimpleUploadedFile
from django.urls import URLPattern, get_resolver, reverse

from adapterhub.accounts.models import Invitation
from adapterhub.api.models import IdempotentRequest
from registry.models import AdapterVersion, Response, Rollout
from tests.builders.adapters import write_adapter
from training.models import Dataset

PUBLIC = {
    "healthz",
    "schema",
    "docs",
    "login",
    "logout",
    "account_login",
    "first-administrator",
    "setup",
    "choose-password",
    "welcome",
    "second-step",
    "admin-login",
    "openid_connect_login",
    "openid_connect_callback",
    "socialaccount_login_cancelled",
    "socialaccount_login_error",
    "socialaccount_signup",
}
# Routes that programs call, and no browser opens.
PROGRAMS = ("api:", "mlflow:")
# Pages that take only POST answer 405 to GET.
POST_ONLY = {
    "declare-variant",
    "promote",
    "check-upload",
    "upload-part",
    "freeze-dossier",
    "move-alias",
    "default-alias",
    "named-versions",
    "hand-over-service-account",
    "grant-cluster",
    "add-replica",
    "move-account",
    "revoke-role",
    "withdraw-grant",
    "steer-cluster",
    "steer-replica",
    "move-rollout",
    "ask-approval",
    "decide",
    "move-training-run",
    "cancel-rank-analysis",
    "compress-version",
    "cancel-compression",
    "cancel-evaluation",
    "archive-version",
    "revoke-token",
    "limit-token",
    "limit-project",
    "revoke-invitation",
    "answer-invitation",
    "theme",
    "revoke-webhook",
    "redeliver",
    "close-service-account",
    "keep-training-run",
    "keep-dataset",
    "erase-dataset",
    "decide-erasure",
    "ask-all",
    "vote",
}


def routes(patterns: list[Any], namespace: str = "", prefix: str = "") -> Iterator[tuple[str, str, Any]]:
    """Name, path and pattern of every route but the admin's, which Django guards and shows only."""
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLPattern):
            yield f"{namespace}{pattern.name or path}", path, pattern
        elif pattern.app_name != "admin":
            yield from routes(pattern.url_patterns, f"{pattern.namespace}:" if pattern.namespace else namespace, path)


ROUTES = {name: (path, pattern) for name, path, pattern in routes(get_resolver().url_patterns)}


def methods(name: str) -> list[str]:
    actions = getattr(ROUTES[name][1].callback, "actions", None)
    if actions:
        return [method.upper() for method in actions]
    return ["GET", "POST"]


CALLS = [(name, method) for name in ROUTES if name not in PUBLIC for method in methods(name)]
POSTS = [name for name, method in CALLS if method == "POST" and name.startswith("api:")]
# What they answer changes nothing, so that nothing could happen twice.
ASKING = {
    "api:dataset-check",
    "api:version-check",
    "api:estimate-list",
    "api:advisor-list",
    "api:rank-analysis-reallocate",
    "api:training-run-preflight",
    "api:plan-list",
}


def address(name: str, world: dict[str, Any]) -> str | None:
    """The route's URL for the things of the world; None when it takes a thing that the world lacks."""
    path, pattern = ROUTES[name]
    kind = path.removeprefix("api/v1/").lstrip("^").split("/")[0]
    wanted = {**pattern.pattern.regex.groupindex}
    if any(kind not in world.get(parameter, {}) for parameter in wanted):
        return None
    url = reverse(name, kwargs={parameter: world[parameter][kind] for parameter in wanted})
    # An export that exists takes a child process of 10 s; the guard stands before its form is read.
    query = "?format=none" if name == "api:version-export" else "?project=eu" if kind == "audit" else ""
    return url + query


def body(name: str, tmp_path: Path) -> dict[str, Any]:
    """A request that only the caller's rights stand against, of the calls that name their project in the body."""
    served = AdapterVersion.objects.order_by("number")[0].served_name
    dataset = Dataset.objects.order_by("pk")[0].pk
    bodies: dict[str, dict[str, Any]] = {
        "api:project-members": {"user": "erna", "role": "viewer"},
        "api:project-invitations": {"address": "charlie", "role": "viewer"},
        "api:project-revoke-invitation": {"id": str(Invitation.objects.earliest("created_at").pk), "reason": "x"},
        "api:service-account-list": {"project": "eu", "name": "bot", "role": "trainer"},
        "api:project-close-account": {"name": "robot"},
        "api:project-hand-over-account": {"name": "robot", "owner": "alice", "reason": "x"},
        "api:project-detail": {"named_versions": "any", "reason": "x"},
        "api:project-revoke-member": {"user": "erna", "role": "admin"},
        "api:base-model-detail": {"also_named": ["acme/copy"], "reason": "x"},
        "api:token-list": {"project": "eu", "name": "t", "scopes": ["read"]},
        "api:webhook-list": {"project": "eu", "url": "https://hook.example/", "events": ["rollout:*"]},
        "api:adapter-list": {"project": "eu", "slug": "new", "base_model": "tiny"},
        "api:cluster-list": {"project": "eu", "slug": "new", "base_model": "tiny"},
        "api:cluster-grants": {"project": "new"},
        "api:cluster-withdraw": {"project": "far", "reason": "x"},
        "api:replica-list": {"cluster": "cpu", "url": "http://127.0.0.1:2"},
        "api:alias-list": {"project": "eu", "name": "new", "cluster": "cpu", "version": served},
        "api:rollout-list": {"alias": "compliance", "candidate": served, "steps": [{"weight": 1}], "reason": "x"},
        "api:feedback-list": {"response_id": Response.objects.get().pk, "score": 1},
        "api:blind-test-list": {"adapter": "dora", "versions": [1, 2], "prompts": ["the bank"]},
        "api:blind-test-vote": {"letter": "A"},
        "api:approval-list": {"rollout": str(Rollout.objects.order_by("created_at")[0].pk), "reason": "x"},
        "api:rank-analysis-list": {
            "project": "eu",
            "base_model": "tiny",
            "dataset": dataset,
            "budget": {"uniform_rank": 4},
        },
        "api:evaluation-list": {"project": "eu", "version": served, "dataset": dataset},
        "api:training-run-list": {"project": "eu", "adapter": "dora", "dataset": dataset},
        "api:training-run-preflight": {"project": "eu", "adapter": "dora", "dataset": dataset},
        "api:plan-list": {"project": "eu", "adapter": {"slug": "dora"}, "base": "tiny", "dataset": dataset},
    }
    return bodies.get(name, {"reason": "x"})


def files(name: str, tmp_path: Path) -> dict[str, Any] | None:
    if name in ("api:dataset-list", "api:dataset-check"):
        return {"project": "eu", "file": SimpleUploadedFile("rows.jsonl", b'{"text": "a b c"}\n' * 30)}
    if name == "api:version-list":
        folder = write_adapter(tmp_path / "up", seed=9)
        return {
            "adapter_model": io.BytesIO((folder / "adapter_model.safetensors").read_bytes()),
            "adapter_config": io.BytesIO((folder / "adapter_config.json").read_bytes()),
        }
    if name == "api:version-check":
        folder = write_adapter(tmp_path / "check", seed=9)
        weights = (folder / "adapter_model.safetensors").read_bytes()
        return {
            "header": io.BytesIO(weights),
            "size": len(weights),
            "adapter_config": io.BytesIO((folder / "adapter_config.json").read_bytes()),
        }
    return None


def many_rows() -> dict[str, Any]:
    """A dataset's form with enough rows to train and to evaluate, none twice."""
    lines = "".join(f'{{"text": "line {number} of many"}}\n' for number in range(80))
    return {"project": "eu", "file": SimpleUploadedFile("many.jsonl", lines.encode())}


def row_counts() -> dict[str, int]:
    """Count the rows of every table but that of Idempotency-Keys."""
    return {model._meta.label: model.objects.count() for model in apps.get_models() if model is not IdempotentRequest}
