"""Overview page: approvals to sign, jobs in progress, versions served, and alarms and drift of replicas."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.timezone import now

from adapterhub.api.listing import Listing
from adapterhub.api.pages import allowed, visible_rows
from adapterhub.audit.models import AuditEvent
from adapterhub.core.tenancy import APPROVE, Scope
from adapterhub.jobs.models import TERMINAL
from registry.models import Adapter, Alias, Approval, ApprovalStatus, Replica, Rollout, RolloutStatus, without_bodies
from registry.serving.open_alarms import open_alarms
from training.models import RankAnalysis, TrainingRun
from training.pages.first_steps import checklist

PAGE = 15
PROTECTED = Q(policy__quorum__gte=1)
# A policy without a quorum makes the comparison NULL, which is neither true nor false.
UNPROTECTED = ~PROTECTED | Q(policy__quorum__isnull=True)
LATEST = 10
TRAINABLE, PROMOTED, LATELY = 5, 3, timedelta(days=7)


@login_required
def overview(request: HttpRequest) -> HttpResponse:
    """Show aliases, jobs in progress, alarms, drift and pending approvals; to auditors also the latest audit events."""
    aliases = visible_rows(
        request,
        without_bodies(
            Alias.objects.select_related("project", "version__adapter__project", "cluster__project"), "version"
        ),
    )
    rollouts = visible_rows(request, Rollout.objects.active(), "alias__project")
    related = rollouts.select_related("alias__cluster", "stable__adapter__project", "candidate__adapter__project")
    moving = list(without_bodies(related, "stable", "candidate"))
    replicas = list(visible_rows(request, Replica.objects.select_related("cluster__project"), "cluster__project"))
    listed = Listing(
        request,
        aliases,
        search=("name", "version__served_name", "cluster__slug"),
        sorts={"name": "name", "cluster": "cluster__slug"},
        states={"protected": PROTECTED, "unprotected": UNPROTECTED},
    ).context(PAGE)
    is_new = not listed["page"].paginator.count and not listed["listing"].is_narrowed
    runs = list(in_progress(request, TrainingRun.objects.select_related("adapter", "dataset")))
    waits = waiting(request)[:LATEST]
    analyses = list(in_progress(request, RankAnalysis.objects.select_related("dataset").defer("plan")))
    context = {
        **listed,
        **(checklist(request) if is_new else {}),
        "rollouts": moving,
        "replicas": replicas,
        "alarms": open_alarms(replicas),
        "drift": drift(listed["page"], replicas),
        "waiting": waits,
        "has_broken_glass": any(approval.status == ApprovalStatus.GLASS_BROKEN for approval in waits),
        "runs": runs,
        "analyses": analyses,
        "jobs": len(runs) + len(analyses),
        "trainable": trainable(request),
        "promoted": lately_promoted(request),
        "events": AuditEvent.objects.filter(project__in=allowed(request, Scope.AUDIT))
        .without_reads()
        .defer("canonical")[:LATEST],
    }
    return render(request, "overview.html", context)


def in_progress(request: HttpRequest, jobs: QuerySet[Any]) -> QuerySet[Any]:
    """Return the LATEST newest jobs that the person may see and that have not ended."""
    return visible_rows(request, jobs).exclude(status__in=TERMINAL).order_by("-created_at")[:LATEST]


def trainable(request: HttpRequest) -> QuerySet[Adapter]:
    """Return the TRAINABLE newest live adapters of the projects in which the person may train, newest first."""
    projects = allowed(request, Scope.TRAIN).filter(archived_at=None)
    adapters = Adapter.objects.live().filter(project__in=projects).select_related("project")
    return adapters.order_by("-created_at")[:TRAINABLE]


def lately_promoted(request: HttpRequest) -> QuerySet[Rollout]:
    """Return the newest PROMOTED rollouts that were promoted within LATELY and that the person may see, newest first.

    They can still be rolled back on their pages. The versions' large fields are not loaded.
    """
    ended = Rollout.objects.filter(status=RolloutStatus.PROMOTED, ended_at__gte=now() - LATELY)
    rollouts = visible_rows(request, ended.select_related("alias", "candidate__adapter"), "alias__project")
    return without_bodies(rollouts, "candidate").order_by("-ended_at")[:PROMOTED]


def waiting(request: HttpRequest) -> QuerySet[Approval]:
    """Return the approvals that this person may sign, and the break-glass changes that they may review.

    Left out are those that they requested, signed already, or allowed themselves by breaking the glass. The versions'
    large fields are not loaded.
    """
    approvals = Approval.objects.waiting().filter(project__in=allowed(request, APPROVE))
    own = Q(author=request.user) | Q(signatures__user=request.user) | Q(broken_by=request.user)
    return without_bodies(approvals.exclude(own).select_related("alias", "candidate__adapter__project"), "candidate")


def drift(aliases: Iterable[Alias], replicas: list[Replica]) -> list[dict[str, Any]]:
    """Return the replicas that are unhealthy or lack a version that one of the aliases serves from their cluster.

    Each row has the `missing` names.
    """
    wanted: dict[int, set[str]] = {}
    for alias in aliases:
        wanted.setdefault(alias.cluster_id, set()).add(alias.version.served_name)
    rows: list[dict[str, Any]] = [
        {"replica": replica, "missing": sorted(wanted.get(replica.cluster_id, set()) - set(replica.loaded))}
        for replica in replicas
    ]
    return [row for row in rows if row["missing"] or not row["replica"].is_healthy]
