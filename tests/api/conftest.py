"""A project with one thing of every kind, whose routes are walked."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from adapterhub.accounts import service_accounts
from adapterhub.accounts.invitations import verbs
from adapterhub.accounts.models import ApiToken, Project, User
from adapterhub.audit.models import AuditEvent
from adapterhub.webhooks.models import Delivery, Webhook
from registry.models import Adapter, AdapterVersion, Alias, BlindTest, Response, Rollout, UsageDay
from tests.builders import member
from training.models import Compression, Dataset, Erasure, Evaluation, RankAnalysis
from training.runs.launch import launch_run


@pytest.fixture
def world(
    project: Project,
    alias: Alias,
    candidate: AdapterVersion,
    dataset: Dataset,
    adapter: Adapter,
    alice: User,
    charlie: User,
) -> dict[str, Any]:
    """One thing of every kind in project eu; the values of every path parameter."""
    by = alice.as_actor()
    alias.set_policy({"quorum": 1}, by=by)
    rollout = Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 5}], reason="try", by=by)
    replica = alias.cluster.add_replica(url="http://127.0.0.1:1", by=by)
    replica.missed("It does not answer.")
    alias.cluster.grant("far", by=by)
    run = launch_run(adapter=adapter, dataset=dataset, by=by)
    analysis = RankAnalysis.launch(
        project=project, base_model=adapter.base_model, dataset=dataset, by=by, budget={"uniform_rank": 8}
    )
    evaluation = Evaluation.launch(alias.version, prompts=["the bank"], by=by)
    compression = Compression.launch(alias.version, {"uniform_rank": 2}, by=by)
    token = ApiToken.issue(name="kept", project=project, scopes=["read"], created_by=alice)[0]
    dataset.keep_as("none", reason="a test", by=by)
    erasure = Erasure.request(dataset, reason="a test", by=member("erna", project, "admin").as_actor())
    service_accounts.create(project, "robot", "trainer", by=by)
    invitation = verbs.send(project, "somebody@example.org", "viewer", by=by)
    webhook = Webhook.objects.create(project=project, url="https://hook.example/", events=["token:*"])
    delivery = Delivery.objects.create(webhook=webhook, event=AuditEvent.objects.filter(project=project).first())
    response = Response.objects.create(
        id=uuid.uuid4().hex,
        project=project,
        version=candidate,
        arm="none",
        alias_name="compliance",
        at=alias.created_at,
        status=200,
        is_sticky=True,
        total_ms=1,
    )
    UsageDay.add([response], set())
    blind = BlindTest.keep(adapter, "the bank", [{"number": 1, "text": "shall"}, {"number": 2, "text": "may"}], by=by)
    return {
        "slug": {
            "projects": "eu",
            "settings": "eu",
            "adapters": adapter.slug,
            "clusters": alias.cluster.slug,
            "base-models": "tiny",
        },
        "name": {"aliases": alias.name, "tokens": "eu/robot"},
        "project": {"tokens": "eu"},
        "number": {"adapters": candidate.number},
        "verb": {
            "invitations": "accept",
            "datasets": "reject",
            "rollouts": "rollback",
            "approvals": "approve",
            "training": "cancel",
        },
        "pk": {
            "rollouts": rollout.pk,
            "approvals": rollout.approvals.get().pk,
            "replicas": replica.pk,
            "tokens": token.pk,
            "invitations": invitation.pk,
            "datasets": dataset.pk,
            "erasures": erasure.pk,
            "training-runs": run.pk,
            "training": run.pk,
            "rank-analyses": analysis.pk,
            "evaluations": evaluation.pk,
            "responses": response.pk,
            "compressions": compression.pk,
            "blind-tests": blind.pk,
            "webhooks": webhook.pk,
            "deliveries": delivery.pk,
            "audit": AuditEvent.objects.filter(project=project).first().pk,
        },
    }
