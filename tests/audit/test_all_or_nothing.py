"""If the audit write fails, the action fails with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, transaction
from rest_framework.test import APIClient

from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.access_log import observe, seal
from adapterhub.audit.models import AuditEvent, UnsealedEvent, verify
from adapterhub.audit.tags import Tag
from registry.models import Adapter, AdapterVersion, Alias, Approval, Rollout
from training.models import TrainingRun
from training.runs.launch import launch_run

Does = Callable[[dict[str, Any]], object]


@pytest.fixture
def things(alias: Alias, candidate: AdapterVersion, alice: User, dataset: Any, adapter: Adapter) -> dict[str, Any]:
    by = alice.as_actor()
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="x", by=by)
    return {"rollout": rollout, "alias": alias, "by": by, "adapter": adapter, "dataset": dataset, "version": candidate}


def state() -> list[Any]:
    return [
        *Alias.objects.values_list("version", "policy", "generation"),
        *Rollout.objects.values_list("status", "weight"),
        *Adapter.objects.values_list("description"),
        Approval.objects.count(),
        ApiToken.objects.count(),
        TrainingRun.objects.count(),
        AuditEvent.objects.count(),
        *AdapterVersion.objects.values_list("status"),
    ]


VERBS: dict[str, Does] = {
    "rollback": lambda t: t["rollout"].rollback(reason="x", by=t["by"]),
    "policy": lambda t: t["alias"].set_policy({"quorum": 2}, by=t["by"]),
    "describe": lambda t: t["adapter"].describe(by=t["by"], description="new"),
    "train": lambda t: launch_run(adapter=t["adapter"], dataset=t["dataset"], by=t["by"]),
    "start": lambda t: t["rollout"].started(by=t["by"]),
}


@pytest.mark.threat("I4")
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_whose_event_cannot_be_written_does_nothing(
    things: dict[str, Any], verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state()

    def fail(*_: object, **__: object) -> None:
        raise DatabaseError("the disk is full")

    monkeypatch.setattr(AuditEvent, "append", fail)
    with pytest.raises(DatabaseError), transaction.atomic():
        VERBS[verb](things)
    assert state() == before


def test_a_token_over_rest_too(ci: str, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DatabaseError("the disk is full")

    monkeypatch.setattr(AuditEvent, "append", fail)
    api = APIClient(raise_request_exception=False, headers={"Authorization": f"Bearer {ci}"})
    body = {"project": "eu", "name": "bot", "scopes": ["read"]}
    with transaction.atomic():
        assert api.post("/api/v1/tokens/", body).status_code == 500
    assert ApiToken.objects.count() == 1


def test_reads_are_sealed_in_their_order(project: Project, alice: User) -> None:
    for number in range(5):
        observe(Tag.AUDIT_READ, by=alice.as_actor(), project=project, resource=f"/page/{number}")
    before = AuditEvent.objects.filter(project=project).count()
    assert seal() == 5
    assert not UnsealedEvent.objects.exists()
    names = AuditEvent.objects.filter(project=project, tag="audit:read").order_by("sequence")
    assert [*names.values_list("object_name", flat=True)] == [f"/page/{number}" for number in range(5)]
    assert verify(project) == (before + 5, [])


@pytest.mark.threat("I5")
def test_a_refusal_is_kept(project: Project, alias: Alias, bob: User) -> None:
    api = APIClient()
    api.force_login(bob)
    assert api.patch(f"/api/v1/aliases/{alias.name}/", {"policy": {}}).status_code == 403
    seal()
    event = AuditEvent.objects.get(tag="access:refused")
    assert (event.actor_name, event.object_name) == ("bob", f"/api/v1/aliases/{alias.name}/")
    assert event.evidence == {"code": "scope_missing"}
