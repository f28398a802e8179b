"""What each call needs, and the calls that a caller may make against it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.db import transaction
from django.test import Client

from adapterhub.accounts.models import Project, User
from adapterhub.core.tenancy import APPROVE, ROLE_SCOPES, Scope
from tests.builders import member
from tests.builders.walk import CALLS, POST_ONLY, ROUTES, address, body, files

READ, TRAIN, PUBLISH, OPERATE, AUDIT, ADMIN = (
    Scope.READ,
    Scope.TRAIN,
    Scope.PUBLISH,
    Scope.OPERATE,
    Scope.AUDIT,
    Scope.ADMIN,
)
# For administrators of the installation, which no role makes.
NOBODY = "installation"
# What a call needs; a GET that is not here needs `read`, and any other call more than a viewer has.
NEEDS = {
    "api:token-list GET": ADMIN,
    "api:token-list POST": ADMIN,
    "api:token-detail PATCH": ADMIN,
    "api:token-revoke POST": ADMIN,
    "api:project-members POST": ADMIN,
    "api:project-revoke-member POST": ADMIN,
    "api:project-invitations GET": ADMIN,
    "api:project-invitations POST": ADMIN,
    "api:project-revoke-invitation POST": ADMIN,
    "invitations POST": ADMIN,
    "revoke-invitation POST": ADMIN,
    "tokens GET": ADMIN,
    "tokens POST": ADMIN,
    "webhooks GET": ADMIN,
    "webhooks POST": ADMIN,
    "revoke-webhook POST": ADMIN,
    "redeliver POST": ADMIN,
    "api:webhook-list GET": ADMIN,
    "api:webhook-list POST": ADMIN,
    "api:webhook-detail GET": ADMIN,
    "api:webhook-revoke POST": ADMIN,
    "api:delivery-list GET": ADMIN,
    "api:delivery-detail GET": ADMIN,
    "api:delivery-redeliver POST": ADMIN,
    "api:service-account-list GET": ADMIN,
    "api:service-account-list POST": ADMIN,
    "api:project-close-account POST": ADMIN,
    "api:project-hand-over-account POST": ADMIN,
    "api:project-detail PATCH": ADMIN,
    "api:base-model-detail PATCH": ADMIN,
    "named-versions POST": ADMIN,
    "hand-over-service-account POST": ADMIN,
    "service-accounts GET": ADMIN,
    "service-accounts POST": ADMIN,
    "close-service-account POST": ADMIN,
    "deliveries GET": ADMIN,
    "api:token-approve POST": APPROVE,
    "token GET": APPROVE,
    "token POST": APPROVE,
    "revoke-token POST": ADMIN,
    "limit-token POST": ADMIN,
    "limit-project POST": ADMIN,
    "audit-roles GET": AUDIT,
    "audit-event GET": AUDIT,
    "api:audit-event-list GET": AUDIT,
    "api:audit-event-detail GET": AUDIT,
    "api:audit-verify GET": AUDIT,
    "api:audit-export GET": AUDIT,
    "audit GET": AUDIT,
    "api:adapter-list POST": PUBLISH,
    "api:adapter-detail PATCH": PUBLISH,
    "api:version-list POST": PUBLISH,
    "api:version-check POST": PUBLISH,
    "api:version-archive POST": PUBLISH,
    "api:version-dossier POST": PUBLISH,
    "api:version-uploads POST": PUBLISH,
    "freeze-dossier POST": PUBLISH,
    "api:cluster-list POST": OPERATE,
    "api:cluster-grants POST": OPERATE,
    "api:cluster-grants PATCH": OPERATE,
    "api:cluster-withdraw POST": OPERATE,
    "grant-cluster POST": OPERATE,
    "withdraw-grant POST": OPERATE,
    "api:replica-list POST": OPERATE,
    "api:replica-detail PATCH": OPERATE,
    "api:replica-detail DELETE": OPERATE,
    "api:replica-drain POST": OPERATE,
    "api:replica-resume POST": OPERATE,
    "api:cluster-detail PATCH": OPERATE,
    "api:cluster-detail DELETE": OPERATE,
    "api:cluster-drain POST": OPERATE,
    "steer-cluster POST": OPERATE,
    "steer-replica POST": OPERATE,
    "api:alias-list POST": OPERATE,
    "api:alias-detail PATCH": OPERATE,
    "api:alias-move POST": OPERATE,
    "api:rollout-list POST": OPERATE,
    "api:rollout-pause POST": OPERATE,
    "api:rollout-resume POST": OPERATE,
    "api:rollout-promote POST": OPERATE,
    "api:rollout-detail PATCH": OPERATE,
    "api:rollout-start POST": OPERATE,
    "api:rollout-discard POST": OPERATE,
    "api:rollout-advance POST": OPERATE,
    "api:feedback-list POST": Scope.INFER,
    "api:rollout-rollback POST": OPERATE,
    "api:rollout-set-weight POST": OPERATE,
    "api:blind-test-list POST": Scope.INFER,
    "api:blind-test-vote POST": Scope.INFER,
    "api:approval-list POST": OPERATE,
    "api:approval-break-glass POST": OPERATE,
    "api:approval-approve POST": APPROVE,
    "api:approval-reject POST": APPROVE,
    "api:approval-review POST": APPROVE,
    "api:dataset-keep POST": ADMIN,
    "api:dataset-erase POST": ADMIN,
    "api:erasure-approve POST": APPROVE,
    "api:erasure-reject POST": APPROVE,
    "keep-dataset POST": ADMIN,
    "erase-dataset POST": ADMIN,
    "decide-erasure POST": APPROVE,
    "api:dataset-list POST": TRAIN,
    "api:dataset-check POST": READ,
    "api:plan-list POST": READ,
    "api:rank-analysis-list POST": TRAIN,
    "api:rank-analysis-cancel POST": TRAIN,
    "api:evaluation-list POST": TRAIN,
    "api:evaluation-cancel POST": TRAIN,
    "api:rank-analysis-reallocate POST": READ,
    "api:training-run-list POST": TRAIN,
    "api:training-run-clone POST": TRAIN,
    "api:training-run-preflight POST": TRAIN,
    "api:estimate-list POST": READ,
    "api:advisor-list POST": READ,
    "api:training-run-cancel POST": TRAIN,
    "api:training-run-resume POST": TRAIN,
    "keep-training-run POST": ADMIN,
    "api:training-run-keep POST": ADMIN,
    "theme POST": READ,
    "people GET": NOBODY,
    "people POST": NOBODY,
    "move-account POST": NOBODY,
    "new-project GET": NOBODY,
    "new-project POST": NOBODY,
    "project GET": ADMIN,
    "project POST": ADMIN,
    "revoke-role POST": ADMIN,
    "new-base-model GET": ADMIN,
    "new-base-model POST": ADMIN,
    "base-model POST": ADMIN,
    "declare-variant POST": ADMIN,
    "new-adapter GET": PUBLISH,
    "new-adapter POST": PUBLISH,
    "edit-adapter GET": PUBLISH,
    "edit-adapter POST": PUBLISH,
    "upload-version GET": PUBLISH,
    "upload-version POST": PUBLISH,
    "archive-version POST": PUBLISH,
    "new-cluster GET": OPERATE,
    "new-cluster POST": OPERATE,
    "add-replica POST": OPERATE,
    "new-alias GET": OPERATE,
    "new-alias POST": OPERATE,
    "alias-policy GET": OPERATE,
    "alias-policy POST": OPERATE,
    "playground POST": Scope.INFER,
    "ask-all POST": Scope.INFER,
    "vote POST": Scope.INFER,
    "promote POST": OPERATE,
    "move-alias POST": OPERATE,
    "default-alias POST": OPERATE,
    "move-rollout POST": OPERATE,
    "ask-approval POST": OPERATE,
    "decide POST": APPROVE,
    "datasets POST": TRAIN,
    "new-training-run GET": TRAIN,
    "new-training-run POST": TRAIN,
    "new-rank-analysis GET": TRAIN,
    "new-rank-analysis POST": TRAIN,
    "move-training-run POST": TRAIN,
    "cancel-rank-analysis POST": TRAIN,
    "evaluate-version GET": TRAIN,
    "evaluate-version POST": TRAIN,
    "cancel-evaluation POST": TRAIN,
    "check-upload POST": PUBLISH,
    "upload-part POST": PUBLISH,
    "compress-version POST": TRAIN,
    "reduce-version GET": TRAIN,
    "reduce-version POST": TRAIN,
    "cancel-compression POST": TRAIN,
    "api:version-compression-compress POST": TRAIN,
    "api:compression-cancel POST": TRAIN,
}
WRITING = {TRAIN, PUBLISH, OPERATE, ADMIN, APPROVE}
# Open to the person who is invited, whatever their roles.
PERSONAL = {"api:invitation-list", "api:invitation-accept", "api:invitation-decline", "answer-invitation"}
OPEN_TO_EVERY_MEMBER = {"api:base-model-list", "api:base-model-detail", "base-model", "declare-variant"}


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
    if name in PERSONAL:
        return None
    if need is None and method == "GET":
        need = READ
    if need is None:
        return None if ROLE_SCOPES[role] & WRITING else False
    return need in ROLE_SCOPES[role]


def signed_in(user: User) -> Client:
    client = Client(raise_request_exception=False)
    client.force_login(user)
    return client


def refuses_the_method(name: str, method: str) -> bool:
    """A page that takes only POST answers 405 to GET."""
    return f"{name} POST" in NEEDS and method == "GET" and name in POST_ONLY


def harmless(answer: Any, name: str) -> bool:
    """A call that is not in the table, with a body that is no request: refused for its body, before any right."""
    return f"{name} POST" not in NEEDS and answer.status_code in (200, 400, 415, 422) and not did_something(answer)


def did_something(answer: Any) -> bool:
    return answer.status_code in (201, 202, 302)


def body_of(answer: Any) -> bytes:
    return b"".join(answer.streaming_content) if answer.streaming else answer.content


def faults_of_role(
    role: str, world: dict[str, Any], project: Project, tmp_path: Path, calls: list[tuple[str, str]] = CALLS
) -> list[str]:
    """Make the calls as a new person of the role; return those that pass or are refused against the table."""
    client = signed_in(member(f"{role}-person", project, role))
    wrong = []
    for name, method in calls:
        url = address(name, world)
        expected = granted(role, name, method)
        if url is None or expected is None or refuses_the_method(name, method):
            continue
        answer = call(client, name, method, url, tmp_path)
        if answer.status_code != 405 and (
            shows_or_does(answer, name, method) != expected and not (expected is False and harmless(answer, name))
        ):
            wrong.append(f"{name} {method}: {answer.status_code}, expected {'to pass' if expected else 'a refusal'}")
    return wrong


def faults_towards_outsiders(
    world: dict[str, Any], charlie: User, tmp_path: Path, calls: list[tuple[str, str]] = CALLS
) -> list[str]:
    """Return the calls that do not answer as they must.

    Nobody signed in: 401 or the login page. The admin of another project: 404 for each thing of this one.
    """
    stranger, outsider = Client(raise_request_exception=False), signed_in(charlie)
    wrong = []
    for name, method in calls:
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
    return wrong
