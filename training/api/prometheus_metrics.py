"""Prometheus metrics of the control plane: jobs, losses, rollouts, replicas, approvals, deliveries, queues."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import redis
from django.db.models import Count, F, Min, QuerySet
from django.http import HttpResponse
from django.utils.timezone import now
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request

from adapterhub.accounts.models import Project
from adapterhub.api.permissions import projects_with
from adapterhub.api.views import ProjectViewSet
from adapterhub.core.tenancy import Scope
from adapterhub.jobs import task_times
from adapterhub.jobs.models import LEASED, JobStatus
from adapterhub.webhooks.models import Delivery, DeliveryStatus
from registry.models import Approval, Cluster, Replica, Rollout
from registry.models.approval import ApprovalStatus
from training.models import Compression, Evaluation, RankAnalysis, TrainingRun

JOBS = {
    "compression": Compression,
    "evaluation": Evaluation,
    "rank_analysis": RankAnalysis,
    "training_run": TrainingRun,
}
# The control loop asks every replica each two seconds: what it said longer ago is no longer known.
SEEN_WITHIN = timedelta(seconds=60)
LOOP = "registry.tasks.reconcile"
TEXT = "text/plain; version=0.0.4; charset=utf-8"
Projects = QuerySet[Project]


def family(name: str, meaning: str, labels: list[str], rows: Any) -> GaugeMetricFamily:
    """Return a gauge named `adapterhub_NAME`; `rows` are pairs of (values of the labels, number)."""
    metric = GaugeMetricFamily(f"adapterhub_{name}", meaning, labels=labels)
    for values, number in rows:
        metric.add_metric([str(value) for value in values], float(number))
    return metric


def jobs(projects: Projects) -> Iterator[GaugeMetricFamily]:
    """Yield gauges of the number of jobs by status, and of the age of the oldest queued job in seconds."""
    counted, ages = [], []
    for kind, model in JOBS.items():
        own_jobs = model.objects.filter(project__in=projects)
        for slug, status, count in own_jobs.values_list("project__slug", "status").annotate(Count("pk")).order_by():
            counted.append(((slug, kind, status), count))
        waiting = own_jobs.filter(status=JobStatus.QUEUED).values_list("project__slug").annotate(Min("created_at"))
        ages += [((slug, kind), (now() - since).total_seconds()) for slug, since in waiting.order_by()]
    yield family("jobs", "Jobs by their status.", ["project", "kind", "status"], counted)
    yield family("oldest_queued_job_seconds", "Seconds that the oldest job has waited.", ["project", "kind"], ages)


def losses(projects: Projects) -> Iterator[GaugeMetricFamily]:
    """Yield gauges of the last step and loss of live runs, and of each adapter's held-out losses.

    The held-out losses are those of the adapter's newest trained version.
    """
    labels = ["project", "adapter", "run"]
    live = TrainingRun.objects.filter(project__in=projects, status__in=LEASED).select_related("project", "adapter")
    progress_of_run = [((run.project.slug, run.adapter.slug, run.pk), run.progress) for run in live]
    for name, meaning in {"step": "The last step of a run.", "loss": "The loss at the last step."}.items():
        samples = [(key, progress[name]) for key, progress in progress_of_run if progress.get(name) is not None]
        yield family(f"training_run_{name}", meaning, labels, samples)
    trained = TrainingRun.objects.filter(project__in=projects, version__isnull=False, loss_after__isnull=False)
    newest = trained.order_by("adapter_id", "-version__number").distinct("adapter_id")
    rows = newest.values_list("project__slug", "adapter__slug", "version__served_name", "loss_before", "loss_after")
    for name, place in {"base": 3, "version": 4}.items():
        yield family(
            f"held_out_loss_{name}",
            f"Held-out loss in nats a token: the {name}.",
            ["project", "adapter", "version"],
            [(row[:3], row[place] or 0) for row in rows],
        )


def serving(projects: Projects) -> Iterator[GaugeMetricFamily]:
    """Yield gauges of the candidates' weights in active rollouts, and those of `clusters`."""
    rollouts = Rollout.objects.active().filter(alias__project__in=projects)
    weights = rollouts.values_list("alias__project__slug", "alias__name", "candidate__served_name", "status", "weight")
    yield family(
        "rollout_weight_percent",
        "The candidate's share, of rollouts that have not ended.",
        ["project", "alias", "candidate", "status"],
        [(row[:4], row[4]) for row in weights],
    )
    yield from clusters(projects)


def clusters(projects: Projects) -> Iterator[GaugeMetricFamily]:
    """Yield gauges of the age of each cluster's last complete reconciliation, and of the state of its replicas."""
    rounds = Cluster.objects.filter(project__in=projects).values_list("project__slug", "slug", "reconciled_at")
    yield family(
        "cluster_reconciled_age_seconds",
        "Seconds since the control loop's last complete round of the cluster.",
        ["project", "cluster"],
        [(row[:2], (now() - row[2]).total_seconds()) for row in rounds if row[2]],
    )
    columns = ("cluster__project__slug", "cluster__slug", "url", "is_healthy", "seen_at", "refused")
    states = list(Replica.objects.filter(cluster__project__in=projects).values_list(*columns))
    labels = ["project", "cluster", "replica"]
    since = now() - SEEN_WITHIN
    yield family(
        "replica_healthy",
        f"1: it responded to the last check, which was less than {SEEN_WITHIN.seconds} s ago.",
        labels,
        [(row[:3], row[3] and row[4] is not None and row[4] > since) for row in states],
    )
    yield family(
        "replica_refused_loads", "Versions that it refused to load.", labels, [(row[:3], len(row[5])) for row in states]
    )


def tasks(projects: Projects) -> Iterator[GaugeMetricFamily]:
    """Yield gauges of the ages of the queues and of each task's last success, for the whole installation.

    Nothing is yielded for a caller without a project. If Valkey is down, only `valkey_up` is yielded.
    """
    if not projects.exists():
        return
    try:
        queues, successes = task_times.queue_ages(), task_times.success_ages()
    except redis.RedisError:
        yield family("valkey_up", "1: the server that holds the queues answers.", [], [((), 0)])
        return
    yield family("valkey_up", "1: the server that holds the queues answers.", [], [((), 1)])
    yield family(
        "queue_age_seconds",
        "Seconds that the oldest message of a queue has waited.",
        ["queue"],
        [((name,), age) for name, age in queues.items()],
    )
    yield family(
        "task_age_seconds",
        "Seconds since a task last succeeded.",
        ["task"],
        [((name,), age) for name, age in successes.items()],
    )
    loop = [((), successes[LOOP])] if LOOP in successes else []
    yield family("loop_age_seconds", "Seconds since the control loop last went over all clusters.", [], loop)


def waiting(projects: Projects) -> Iterator[GaugeMetricFamily]:
    """Yield gauges of the number of pending approvals, and of webhook deliveries that were not accepted."""
    pending = Approval.objects.filter(project__in=projects, status=ApprovalStatus.PENDING)
    counted = pending.values_list("project__slug").annotate(Count("pk")).order_by()
    yield family(
        "approvals_pending",
        "Requests that wait for signatures.",
        ["project"],
        [((slug,), count) for slug, count in counted],
    )
    sent = Delivery.objects.filter(webhook__project__in=projects).exclude(status=DeliveryStatus.DELIVERED)
    undelivered = sent.values_list(F("webhook__project__slug"), "status").annotate(Count("pk")).order_by()
    yield family(
        "webhook_deliveries",
        "Deliveries that were not accepted.",
        ["project", "status"],
        [((slug, status), count) for slug, status, count in undelivered],
    )


class Exposition:
    """Prometheus collector that reads the database at each scrape, so that every web process gives the same figures."""

    def __init__(self, projects: Projects) -> None:
        self.projects = projects

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield every metric of the projects."""
        for part in (jobs, losses, serving, waiting, tasks):
            yield from part(self.projects)


class Text(BaseRenderer):
    """Renderer that registers Prometheus' media type; errors are still rendered as a problem."""

    media_type = "text/plain"
    format = "txt"

    def render(self, data: Any, accepted_media_type: str | None = None, context: Any = None) -> bytes:
        """Return the data of an error as JSON.

        Metrics are sent as a finished HttpResponse and are not rendered here.
        """
        return json.dumps(data).encode()


class MetricsViewSet(ProjectViewSet):
    """Metrics of the control plane for Prometheus. The router has its own at /metrics."""

    queryset = TrainingRun.objects.all()
    renderer_classes = [JSONRenderer, Text]
    scopes = {"metrics": Scope.READ}

    @extend_schema(responses={(200, "text/plain"): OpenApiTypes.STR})
    def metrics(self, request: Request) -> HttpResponse:
        """Return gauges of the projects that the caller sees, in Prometheus' text format."""
        registry = CollectorRegistry()
        registry.register(Exposition(projects_with(request, Scope.READ)))
        return HttpResponse(generate_latest(registry), content_type=TEXT)
