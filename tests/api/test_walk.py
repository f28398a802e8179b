"""Every route of the URL configuration x every role x projects: what is not granted here is refused."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, get_resolver, reverse

from adapterhub.accounts import service_accounts
from adapterhub.accounts.models import APPROVE, ROLE_SCOPES, ApiToken, Membership, Project, Scope, User
from adapterhub.audit.models import AuditEvent
from adapterhub.webhooks.models import Delivery, Webhook
from registry.models import Adapter, AdapterVersion, Alias, BlindTest, Response, Rollout
from tests.builders import member, write_adapter
from training.models import Compression, Dataset, Erasure, Evaluation, RankAnalysis, TrainingRun

PUBLIC = {"healthz", "schema", "docs", "login", "logout", "account_login", "second-step", "admin-login",
          "openid_connect_login", "openid_connect_callback", "socialaccount_login_cancelled",
          "socialaccount_login_error", "socialaccount_signup"}  # fmt: skip
READ, TRAIN, PUBLISH, OPERATE, AUDIT, ADMIN = (
    Scope.READ, Scope.TRAIN, Scope.PUBLISH, Scope.OPERATE, Scope.AUDIT, Scope.ADMIN)  # fmt: skip
# What a call needs; a GET that is not here needs `read`, and any other call more than a viewer has.
NEEDS = {
    "api:token-list GET": ADMIN, "api:token-list POST": ADMIN, "api:token-revoke POST": ADMIN,
    "api:project-members POST": ADMIN, "api:project-revoke-member POST": ADMIN, "tokens GET": ADMIN,
    "tokens POST": ADMIN, "webhooks GET": ADMIN, "webhooks POST": ADMIN,
    "revoke-webhook POST": ADMIN, "redeliver POST": ADMIN, "api:webhook-list GET": ADMIN,
    "api:webhook-list POST": ADMIN, "api:webhook-detail GET": ADMIN, "api:webhook-revoke POST": ADMIN,
    "api:delivery-list GET": ADMIN, "api:delivery-detail GET": ADMIN, "api:delivery-redeliver POST": ADMIN,
    "api:service-account-list GET": ADMIN, "api:service-account-list POST": ADMIN,
    "api:project-close-account POST": ADMIN, "service-accounts GET": ADMIN, "service-accounts POST": ADMIN,
    "close-service-account POST": ADMIN, "deliveries GET": ADMIN,
    "api:token-approve POST": APPROVE, "token GET": APPROVE, "token POST": APPROVE,
    "revoke-token POST": ADMIN, "audit-roles GET": AUDIT, "audit-event GET": AUDIT,
    "api:audit-event-list GET": AUDIT, "api:audit-event-detail GET": AUDIT, "api:audit-verify GET": AUDIT,
    "api:audit-export GET": AUDIT, "audit GET": AUDIT,
    "api:adapter-list POST": PUBLISH, "api:adapter-detail PATCH": PUBLISH, "api:version-list POST": PUBLISH,
    "api:version-archive POST": PUBLISH, "api:version-dossier POST": PUBLISH, "api:version-uploads POST": PUBLISH,
    "freeze-dossier POST": PUBLISH,
    "api:cluster-list POST": OPERATE, "api:replica-list POST": OPERATE, "api:alias-list POST": OPERATE,
    "api:alias-detail PATCH": OPERATE, "api:alias-move POST": OPERATE, "api:rollout-list POST": OPERATE,
    "api:rollout-pause POST": OPERATE, "api:rollout-resume POST": OPERATE, "api:rollout-promote POST": OPERATE,
    "api:rollout-detail PATCH": OPERATE, "api:rollout-start POST": OPERATE, "api:rollout-discard POST": OPERATE,
    "api:rollout-advance POST": OPERATE, "api:feedback-list POST": Scope.INFER,
    "api:rollout-rollback POST": OPERATE, "api:rollout-set-weight POST": OPERATE,
    "api:blind-test-list POST": Scope.INFER, "api:blind-test-vote POST": Scope.INFER,
    "api:approval-list POST": OPERATE, "api:approval-break-glass POST": OPERATE,
    "api:approval-approve POST": APPROVE, "api:approval-reject POST": APPROVE, "api:approval-review POST": APPROVE,
    "api:dataset-keep POST": ADMIN, "api:dataset-erase POST": ADMIN, "api:erasure-approve POST": APPROVE,
    "api:erasure-reject POST": APPROVE, "keep-dataset POST": ADMIN, "erase-dataset POST": ADMIN,
    "decide-erasure POST": APPROVE, "api:dataset-list POST": TRAIN, "api:dataset-check POST": TRAIN,
    "api:rank-analysis-list POST": TRAIN, "api:rank-analysis-cancel POST": TRAIN,
    "api:evaluation-list POST": TRAIN, "api:evaluation-cancel POST": TRAIN,
    "api:rank-analysis-reallocate POST": READ, "api:training-run-list POST": TRAIN,
    "api:training-run-clone POST": TRAIN, "api:training-run-preflight POST": TRAIN,
    "api:estimate-list POST": READ, "api:advisor-list POST": READ,
    "api:training-run-cancel POST": TRAIN, "api:training-run-resume POST": TRAIN,
    "keep-training-run POST": ADMIN, "api:training-run-keep POST": ADMIN,
    "theme POST": READ, "playground POST": Scope.INFER, "ask-all POST": Scope.INFER, "vote POST": Scope.INFER,
    "promote POST": OPERATE, "move-alias POST": OPERATE, "move-rollout POST": OPERATE, "ask-approval POST": OPERATE,
    "decide POST": APPROVE, "datasets POST": TRAIN, "new-training-run GET": TRAIN, "new-training-run POST": TRAIN,
    "new-rank-analysis GET": TRAIN, "new-rank-analysis POST": TRAIN, "move-training-run POST": TRAIN,
    "cancel-rank-analysis POST": TRAIN, "compress-version POST": TRAIN, "cancel-compression POST": TRAIN,
    "api:version-compression-compress POST": TRAIN, "api:compression-cancel POST": TRAIN,
}  # fmt: skip
WRITING = {TRAIN, PUBLISH, OPERATE, ADMIN, APPROVE}
ROLES = [*Membership.Role.values]


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


@pytest.fixture
def world(
    project: Project, alias: Alias, candidate: AdapterVersion, dataset: Dataset, adapter: Adapter, alice: User,
    charlie: User,
) -> dict[str, Any]:  # fmt: skip
    """One thing of every kind in project eu; the values of every path parameter."""
    by = alice.as_actor()
    alias.set_policy({"quorum": 1}, by=by)
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=by)
    replica = alias.cluster.add_replica(url="http://127.0.0.1:1", by=by)
    replica.missed("It does not answer.")
    run = TrainingRun.launch(adapter=adapter, dataset=dataset, by=by)
    analysis = RankAnalysis.launch(project=project, base_model=adapter.base_model, dataset=dataset, by=by,
                                   budget={"uniform_rank": 8})  # fmt: skip
    evaluation = Evaluation.launch(alias.version, prompts=["the bank"], by=by)
    compression = Compression.launch(alias.version, {"uniform_rank": 2}, by=by)
    token = ApiToken.issue(name="kept", project=project, scopes=["read"], created_by=alice)[0]
    dataset.keep_as("none", reason="a test", by=by)
    erasure = Erasure.request(dataset, reason="a test", by=member("erna", project, "admin").as_actor())
    service_accounts.create(project, "robot", "trainer", by=by)
    webhook = Webhook.objects.create(project=project, url="https://hook.example/", events=["token:*"])
    delivery = Delivery.objects.create(webhook=webhook, event=AuditEvent.objects.filter(project=project).first())
    response = Response.objects.create(id=uuid.uuid4().hex, project=project, version=candidate, arm="none",
                                       alias_name="compliance", at=alias.created_at, status=200, is_sticky=True,
                                       total_ms=1)  # fmt: skip
    blind = BlindTest.keep(adapter, "the bank", [{"number": 1, "text": "shall"}, {"number": 2, "text": "may"}], by=by)
    return {
        "slug": {"projects": "eu", "adapters": adapter.slug, "clusters": alias.cluster.slug, "base-models": "tiny"},
        "name": {"aliases": alias.name, "tokens": "robot"},
        "project": {"tokens": "eu"},
        "number": {"adapters": candidate.number},
        "verb": {"datasets": "reject", "rollouts": "rollback", "approvals": "approve", "training": "cancel"},
        "pk": {
            "rollouts": rollout.pk, "approvals": rollout.approvals.get().pk, "replicas": replica.pk,
            "tokens": token.pk, "datasets": dataset.pk, "erasures": erasure.pk,
            "training-runs": run.pk, "training": run.pk,
            "rank-analyses": analysis.pk, "evaluations": evaluation.pk, "responses": response.pk,
            "compressions": compression.pk, "blind-tests": blind.pk, "webhooks": webhook.pk, "deliveries": delivery.pk,
            "audit": AuditEvent.objects.filter(project=project).first().pk,
        },
    }  # fmt: skip


def address(name: str, world: dict[str, Any]) -> str | None:
    """The route's URL for the things of the world; None when it takes a thing that the world lacks."""
    path, pattern = ROUTES[name]
    kind = path.removeprefix("api/v1/").lstrip("^").split("/")[0]
    wanted = {**pattern.pattern.regex.groupindex}
    if any(kind not in world.get(parameter, {}) for parameter in wanted):
        return None
    url = reverse(name, kwargs={parameter: world[parameter][kind] for parameter in wanted})
    return f"{url}?project=eu" if kind == "audit" else url


def body(name: str, tmp_path: Path) -> dict[str, Any]:
    """A request that only the caller's rights stand against, of the calls that name their project in the body."""
    served = AdapterVersion.objects.order_by("number")[0].served_name
    dataset = Dataset.objects.order_by("pk")[0].pk
    bodies: dict[str, dict[str, Any]] = {
        "api:project-members": {"user": "charlie", "role": "viewer"},
        "api:service-account-list": {"project": "eu", "name": "bot", "role": "trainer"},
        "api:project-close-account": {"name": "robot"},
        "api:project-revoke-member": {"user": "alice", "role": "admin"},
        "api:token-list": {"project": "eu", "name": "t", "scopes": ["read"]},
        "api:webhook-list": {"project": "eu", "url": "https://hook.example/", "events": ["rollout:*"]},
        "api:adapter-list": {"project": "eu", "slug": "new", "base_model": "tiny"},
        "api:cluster-list": {"project": "eu", "slug": "new", "base_model": "tiny"},
        "api:replica-list": {"cluster": "cpu", "url": "http://127.0.0.1:2"},
        "api:alias-list": {"project": "eu", "name": "new", "cluster": "cpu", "version": served},
        "api:rollout-list": {"alias": "compliance", "candidate": served, "steps": [{"weight": 1}], "reason": "x"},
        "api:feedback-list": {"response_id": Response.objects.get().pk, "score": 1},
        "api:blind-test-list": {"adapter": "dora", "versions": [1, 2], "prompts": ["the bank"]},
        "api:blind-test-vote": {"letter": "A"},
        "api:approval-list": {"rollout": str(Rollout.objects.order_by("created_at")[0].pk), "reason": "x"},
        "api:rank-analysis-list": {"project": "eu", "base_model": "tiny", "dataset": dataset,
                                   "budget": {"uniform_rank": 4}},
        "api:evaluation-list": {"project": "eu", "version": served, "dataset": dataset},
        "api:training-run-list": {"project": "eu", "adapter": "dora", "dataset": dataset},
        "api:training-run-preflight": {"project": "eu", "adapter": "dora", "dataset": dataset},
    }  # fmt: skip
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
    return None


def call(client: Client, name: str, method: str, url: str, tmp_path: Path) -> Any:
    """Send it and undo what it did."""
    form = files(name, tmp_path) if method == "POST" else None
    with transaction.atomic():
        if method == "GET":
            answer = client.get(url)
        elif form or not name.startswith("api:"):
            answer = client.post(url, form or {"reason": "x"})
        else:
            answer = client.generic(method, url, json.dumps(body(name, tmp_path)), content_type="application/json")
        transaction.set_rollback(True)
    if answer.streaming:
        # Read to the end, which closes the file behind it.
        answer.streaming_content = [b"".join(answer.streaming_content)]
    return answer


def shows_or_does(answer: Any, name: str, method: str) -> bool:
    """True unless it was refused: a list without a row shows nothing; a form that is sent back passed the guard."""
    if answer.status_code in (401, 403, 404):
        return False
    if method == "GET" and name.startswith("api:") and name.endswith("-list"):
        return bool(answer.json()["results"])
    return True


def granted(role: str, name: str, method: str) -> bool | None:
    """What the role may expect; None where only the table's silence speaks, and only readers are judged."""
    need = NEEDS.get(f"{name} {method}")
    if need is None and method == "GET":
        need = READ
    if need is None:
        return None if ROLE_SCOPES[role] & WRITING else False
    return need in ROLE_SCOPES[role]


def signed_in(user: User) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(user)
    return client


OPEN_TO_EVERY_MEMBER = {"api:base-model-list", "api:base-model-detail"}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_gets_what_the_table_grants_and_no_more(
    world: dict[str, Any], project: Project, role: str, tmp_path: Path
) -> None:
    client = signed_in(member(f"{role}-person", project, role))
    wrong = []
    for name, method in CALLS:
        url = address(name, world)
        expected = granted(role, name, method)
        if url is None or expected is None or refuses_the_method(name, method):
            continue
        answer = call(client, name, method, url, tmp_path)
        if answer.status_code != 405 and (
            shows_or_does(answer, name, method) != expected and not (expected is False and harmless(answer, name))
        ):
            wrong.append(f"{name} {method}: {answer.status_code}, expected {'to pass' if expected else 'a refusal'}")
    assert wrong == []


def refuses_the_method(name: str, method: str) -> bool:
    """A page that takes only POST answers 405 to GET."""
    return f"{name} POST" in NEEDS and method == "GET" and name in POST_ONLY


POST_ONLY = {"promote", "freeze-dossier", "move-alias", "move-rollout", "ask-approval", "decide", "move-training-run",
             "cancel-rank-analysis", "compress-version", "cancel-compression", "revoke-token", "theme",
             "revoke-webhook", "redeliver", "close-service-account",
             "keep-training-run", "keep-dataset", "erase-dataset", "decide-erasure", "ask-all", "vote"}  # fmt: skip


def harmless(answer: Any, name: str) -> bool:
    """A call that is not in the table, with a body that is no request: refused for its body, before any right."""
    return f"{name} POST" not in NEEDS and answer.status_code in (200, 400, 415, 422) and not did_something(answer)


def did_something(answer: Any) -> bool:
    return answer.status_code in (201, 202, 302)


def test_strangers_and_other_tenants_get_nothing(world: dict[str, Any], charlie: User, tmp_path: Path) -> None:
    """Nobody signed in: 401 or the login page. The admin of another project: 404 for each thing of this one."""
    stranger, outsider = Client(raise_request_exception=False), signed_in(charlie)
    wrong = []
    for name, method in CALLS:
        url = address(name, world)
        if url is None:
            continue
        first = call(stranger, name, method, url, tmp_path)
        to_login = first.status_code == 302 and first["Location"].startswith("/login/")
        if first.status_code not in (401, 403, 405) and not to_login:
            wrong.append(f"{name} {method}: a stranger gets {first.status_code}")
        takes_a_thing = ROUTES[name][1].pattern.regex.groupindex and name not in OPEN_TO_EVERY_MEMBER
        second = call(outsider, name, method, url, tmp_path)
        if takes_a_thing and second.status_code not in (404, 405):
            wrong.append(f"{name} {method}: another tenant gets {second.status_code}")
        if name not in OPEN_TO_EVERY_MEMBER and method != "GET" and second.status_code in (201, 202):
            wrong.append(f"{name} {method}: another tenant does {second.status_code}")
        if method == "GET" and b"compliance" in body_of(second):
            wrong.append(f"{name} {method}: another tenant reads of the alias")
    assert wrong == []


def body_of(answer: Any) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


FOR_PEOPLE = {
    "api:erasure-approve",
    "api:erasure-reject",
    "api:token-approve",
    "api:approval-break-glass",
    "api:blind-test-vote",
    "api:approval-approve",
    "api:approval-reject",
    "api:approval-review",
}


def test_a_token_gets_what_its_scopes_grant(world: dict[str, Any], project: Project, tmp_path: Path) -> None:
    """A token of scope read is a viewer; with every scope it still cannot approve."""
    wrong = []
    for scopes in (["read"], Scope.values):
        token = ApiToken.issue(name="walk", project=project, scopes=scopes, created_by=None)[1]
        client = Client(headers={"Authorization": f"Bearer {token}"}, raise_request_exception=False)
        for name, method in CALLS:
            need = NEEDS.get(f"{name} {method}", READ if method == "GET" else None)
            url = address(name, world) if name.startswith("api:") and need else None
            if url:
                answer = call(client, name, method, url, tmp_path)
                may = need in scopes and name not in FOR_PEOPLE
                if shows_or_does(answer, name, method) != may:
                    wrong.append(f"{scopes} {name} {method}: {answer.status_code}")
    assert wrong == []


def test_the_table_names_only_routes_that_exist() -> None:
    assert {key.split()[0] for key in NEEDS} <= set(ROUTES)
