"""Tenants with one object of every kind, each under a name in which the tenant's own word stands."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core import signing
from django.test import Client

from adapterhub.accounts import service_accounts
from adapterhub.accounts.invitations import verbs as invitations
from adapterhub.accounts.models import ApiToken, Membership, Project, SignIn, User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.tenancy import Scope
from adapterhub.jobs.models import JobStatus
from adapterhub.webhooks.models import Attempt, Delivery, Webhook
from registry.evidence.dossier import dossier
from registry.models import (
    Adapter,
    AdapterVersion,
    Alias,
    BaseModel,
    BlindTest,
    Cluster,
    Dossier,
    Response,
    Rollout,
    UsageDay,
)
from tests.builders.adapters import write_adapter
from tests.builders.people import member
from tests.builders.rows import rows, write_jsonl
from tests.pages.plans import PLAN
from training.models import Compression, Dataset, Erasure, Evaluation, RankAnalysis, RunMetric
from training.runs.launch import launch_run


@dataclass(frozen=True)
class Tenant:
    """A project, a person with every role in it, a token with every scope, and the names of its objects by kind."""

    word: str
    project: Project
    person: User
    token: str
    names: dict[str, Any]


def tenant(word: str, base_model: BaseModel, folder: Path, versions: int = 2) -> Tenant:
    """Make a project with one object of every kind, in each of whose names `word` stands."""
    project = Project.objects.create(slug=word, name=f"The project {word}")
    person = member(f"{word}-person", project, Membership.Role.ADMIN)
    for role in set(Membership.Role.values) - {Membership.Role.ADMIN}:
        Membership.objects.create(project=project, user=person, role=role)
    by = replace(person.as_actor(), request_id=f"{word}-request")
    token, text = ApiToken.issue(
        name=f"{word}-token",
        project=project,
        scopes=Scope.values,
        created_by=person,
        account=service_accounts.create(project, f"{word}-robot", Membership.Role.OPERATOR, by=by),
    )
    Membership.objects.create(project=project, user=token.account, role=Membership.Role.ADMIN)
    names = {
        "project": word,
        "project pk": project.pk,
        "user": person.username,
        "account": token.account.username,
        "short account": f"{word}-robot",
        "token": token.pk,
        "token name": token.name,
        "request": by.request_id,
        "sign-in": signed_in_elsewhere(person).pk,
        "invitation": str(invitations.send(host_of(word), person.username, Membership.Role.VIEWER, by=by).pk),
        "sent invitation": str(invitations.send(project, f"{word}-guest", Membership.Role.VIEWER, by=by).pk),
    }
    names |= served_things(project, base_model, folder, versions, by)
    names |= trained_things(project, Adapter.objects.get(project=project), folder, by)
    names |= reported_things(project, names)
    return Tenant(word, project, person, text, names)


def host_of(word: str) -> Project:
    """Make another project, to which the tenant's person is invited."""
    return Project.objects.create(slug=f"{word}-host", name=f"The host of {word}")


def signed_in_elsewhere(person: User) -> SignIn:
    """Sign the person in from another browser."""
    Client().force_login(person)
    return SignIn.objects.get(user=person)


def served_things(project: Project, base_model: BaseModel, folder: Path, versions: int, by: Any) -> dict[str, Any]:
    """Make an adapter with versions, a cluster with a replica, a protected alias and a rollout that waits."""
    word = project.slug
    adapter = Adapter.create(
        project=project, slug=f"{word}-adapter", base_model=base_model, by=by, description=f"of {word}"
    )
    published = [
        AdapterVersion.publish(
            adapter, write_adapter(folder / f"{word}-{number}", seed=seed_of(word) + number), method="upload", by=by
        )
        for number in range(versions)
    ]
    cluster = Cluster.create(project=project, slug=f"{word}-cluster", base_model=base_model, by=by)
    replica = cluster.add_replica(url=f"http://127.0.0.1:{2000 + seed_of(word) % 30_000}", by=by)
    replica.missed(f"The engine of {word} does not answer.")
    cluster.grant(f"{word}-friends", by=by)
    alias = Alias.create(
        project=project, name=f"{word}-alias", cluster=cluster, version=published[0], policy={}, default=True, by=by
    )
    alias.set_policy({"quorum": 1}, by=by)
    rollout = Rollout.create(alias=alias, candidate=published[-1], steps=[{"weight": 5}], reason=f"of {word}", by=by)
    open_alias = Alias.create(
        project=project, name=f"{word}-open", cluster=cluster, version=published[0], policy={}, by=by
    )
    frozen = Dossier.freeze(published[-1], dossier(published[-1]), by=by)
    inbox = write_adapter(settings.INBOX_DIR / word / f"{word}-inbox", seed=seed_of(word) + 90)
    return {
        "adapter": adapter.slug,
        "adapter pk": adapter.pk,
        "number": versions,
        "version": published[0].served_name,
        "version pk": published[0].pk,
        "candidate": published[-1].served_name,
        "candidate pk": published[-1].pk,
        "version digest": published[0].digest,
        "cluster": cluster.slug,
        "cluster pk": cluster.pk,
        "replica": replica.pk,
        "address": replica.url,
        "grantee": f"{word}-friends",
        "alias": alias.name,
        "open alias": open_alias.name,
        "open alias pk": open_alias.pk,
        "rollout": str(rollout.pk),
        "approval": str(rollout.approvals.get().pk),
        "dossier": frozen.digest,
        "folder": inbox.name,
        "upload": signing.dumps({"adapter": adapter.pk, "key": f"{word}-upload"}, salt="upload"),
    }


def trained_things(project: Project, adapter: Adapter, folder: Path, by: Any) -> dict[str, Any]:
    """Make a dataset whose erasure waits, and jobs of every kind."""
    word = project.slug
    texts = [{name: f"{word}: {text}" for name, text in row.items()} for row in rows()]
    file = write_jsonl(folder / f"{word}.jsonl", texts)
    dataset = Dataset.create(project=project, name=f"{word}-rows", file=file, filename=f"{word}.jsonl", by=by)
    analysis = RankAnalysis.launch(
        project=project, base_model=adapter.base_model, dataset=dataset, by=by, budget={"uniform_rank": 8}
    )
    RankAnalysis.objects.filter(pk=analysis.pk).update(status=JobStatus.SUCCEEDED, plan=PLAN)
    run = launch_run(adapter=adapter, dataset=dataset, by=by)
    type(run).objects.filter(pk=run.pk).update(rank_analysis=analysis)
    RunMetric.objects.create(run=run, step=1, values={"loss": 3.0})
    first, last = adapter.versions.order_by("number").first(), adapter.versions.order_by("number").last()
    evaluation = Evaluation.launch(first, against=last, dataset=dataset, prompts=[f"{word} shall"], by=by)
    compression = Compression.launch(first, {"uniform_rank": 2}, dataset=dataset, by=by)
    dataset.keep_as("none", reason=f"of {word}", by=by)
    return {
        "dataset": dataset.pk,
        "dataset name": dataset.name,
        "dataset digest": dataset.digest,
        "analysis": str(analysis.pk),
        "run": str(run.pk),
        "evaluation": str(evaluation.pk),
        "compression": str(compression.pk),
        "erasure": Erasure.request(dataset, reason=f"of {word}", by=by).pk,
    }


def reported_things(project: Project, names: dict[str, Any]) -> dict[str, Any]:
    """Make an answer with feedback, a blind test, a webhook with a delivery, and name an event of the trail."""
    word = project.slug
    person = User.objects.get(username=names["user"])
    adapter = Adapter.objects.get(project=project)
    response = Response.objects.create(
        id=uuid.uuid4().hex,
        project=project,
        version=adapter.versions.get(number=1),
        arm="none",
        alias_name=names["alias"],
        at=project.created_at,
        status=200,
        is_sticky=True,
        total_ms=1,
    )
    UsageDay.add([response], set())
    answers = [{"number": 1, "text": f"{word} shall"}, {"number": 2, "text": f"{word} may"}]
    blind = BlindTest.keep(adapter, f"the bank of {word}", answers, by=person.as_actor())
    webhook = Webhook.objects.create(project=project, url=f"https://{word}.example/", events=["token:*"])
    event = AuditEvent.objects.filter(project=project).first()
    delivery = Delivery.objects.create(webhook=webhook, event=event)
    Attempt.objects.create(delivery=delivery, number=1, error=f"{word} does not answer")
    return {
        "response": response.pk,
        "blind test": str(blind.pk),
        "webhook": str(webhook.pk),
        "delivery": delivery.pk,
        "event": event.pk,
    }


def seed_of(word: str) -> int:
    """Return a number of the word, so that no two tenants have the same weights or addresses."""
    return int.from_bytes(word.encode()) % 1_000_003


def nowhere(names: dict[str, Any], word: str) -> dict[str, Any]:
    """Return names of the same form that exist nowhere."""
    return {kind: unknown(value, word) for kind, value in names.items()}


def unknown(value: Any, word: str) -> Any:
    """Return a value of the same form which names nothing."""
    if isinstance(value, int):
        return value + 1_000_000
    if isinstance(value, str) and ":" in value and not value.startswith("http"):
        return signing.dumps({"adapter": 10**9, "key": "nowhere"}, salt="other")
    if value.startswith("http"):
        return "http://127.0.0.1:1999"
    if word in value:
        name = value.replace(word, "q" * len(word))
        return name[:-12] + "0" * 12 if name.count(".") == 2 else name
    if len(value) == 36:
        return str(uuid.UUID(bytes=os.urandom(16), version=4))
    return os.urandom(32).hex()[: len(value)]
