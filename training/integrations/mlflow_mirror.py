"""Mirror of ended runs on an MLflow tracking server: hyperparameters, metrics, inputs, and the resulting version.

The mirror is a copy for people who compare runs there. Nothing waits for it; if the server is down, it is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
from django.conf import settings
from django.db.models import Q
from django.db.models.functions import Now

from adapterhub.jobs.models import TERMINAL, JobStatus
from training.models import Dataset, TrainingRun

BATCH = 20
TIMEOUT_S = 10.0
# What a log-batch takes, by MLflow's REST documentation.
MOST_METRICS = 1000
MOST_LETTERS = 500
STATUS = {JobStatus.SUCCEEDED: "FINISHED", JobStatus.FAILED: "FAILED", JobStatus.CANCELLED: "KILLED"}
OURS = "adapterhub.run"
Json = dict[str, Any]
log = logging.getLogger(__name__)


def mirror() -> int:
    """Copy up to BATCH ended runs that are not mirrored yet, those that ended first before others; return their number.

    0 without an MLflow server, and, with a warning in the log, if the server fails; runs copied before that stay
    copied.
    """
    if not settings.MLFLOW_URL:
        return 0
    ended = TrainingRun.objects.filter(Q(status__in=TERMINAL), mirrored_at=None).order_by("finished_at")
    with Tracking(settings.MLFLOW_URL) as server:
        try:
            return sum(copy(run, server) for run in ended.select_related("project", "adapter", "version")[:BATCH])
        except httpx.HTTPError as error:
            log.warning("MLflow at %s did not take a run: %s", settings.MLFLOW_URL, error)
            return 0


def copy(run: TrainingRun, server: Tracking) -> bool:
    """Write the run to MLflow and mark it as mirrored; return False for a run that was deleted meanwhile.

    A copy that was interrupted is continued, not duplicated. Raises httpx.HTTPError if the server fails.
    """
    experiment = server.experiment(f"{run.project.slug}/{run.adapter.slug}")
    there = server.run_of(experiment, run) or server.create(experiment, run)
    for batch in batches(run):
        server.post("runs/log-batch", run_id=there, **batch)
    server.post("runs/log-inputs", run_id=there, datasets=[input_of(part.dataset) for part in run.parts()])
    server.post("runs/update", run_id=there, status=STATUS[JobStatus(run.status)], end_time=millis(run.finished_at))
    return bool(TrainingRun.objects.filter(pk=run.pk).update(mirrored_at=Now()))


class Tracking(httpx.Client):
    """Client for the few calls of MLflow's REST API 2.0 that the mirror needs; each raises httpx.HTTPError."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=f"{url.rstrip('/')}/api/2.0/mlflow/", timeout=TIMEOUT_S, trust_env=False)

    def post(self, path: str, **body: Any) -> Json:  # type: ignore[override]
        """Send the fields of `body` as JSON and return the response's JSON. Raises httpx.HTTPError."""
        answer = super().post(path, json=body)
        answer.raise_for_status()
        content: Json = answer.json()
        return content

    def experiment(self, name: str) -> str:
        """Return the id of the experiment of this name, which is created if there is none."""
        answer = self.get("experiments/get-by-name", params={"experiment_name": name})
        if answer.status_code == 404:
            return str(self.post("experiments/create", name=name)["experiment_id"])
        return str(answer.raise_for_status().json()["experiment"]["experiment_id"])

    def run_of(self, experiment: str, run: TrainingRun) -> str | None:
        """Return the id of the run's mirror in the experiment; None if there is none."""
        query = {"experiment_ids": [experiment], "filter": f"tags.`{OURS}` = '{run.pk}'", "max_results": 1}
        runs = self.post("runs/search", **query).get("runs", [])
        return str(runs[0]["info"]["run_id"]) if runs else None

    def create(self, experiment: str, run: TrainingRun) -> str:
        """Create the run's mirror in the experiment and return its id."""
        name = run.version.served_name if run.version else str(run)
        began = millis(run.started_at or run.created_at)
        created = self.post(
            "runs/create",
            experiment_id=experiment,
            run_name=name,
            start_time=began,
            tags=[{"key": OURS, "value": str(run.pk)}],
        )
        return str(created["run"]["info"]["run_id"])


def tags_of(run: TrainingRun) -> dict[str, str]:
    """Return MLflow tags: the run, its adapter and reason; if it became a version, also that and its recorded inputs.

    Empty values are left out; values longer than MOST_LETTERS characters are cut.
    """
    tags = {OURS: str(run.pk), "adapterhub.adapter": run.adapter.slug, "adapterhub.reason": run.reason}
    if run.version:
        tags |= {"adapterhub.version": run.version.served_name, "adapterhub.digest": run.version.digest}
        tags |= {f"adapterhub.{name}": str(value) for name, value in run.version.lineage.items() if value}
    return {name: value[:MOST_LETTERS] for name, value in tags.items() if value}


def input_of(used: Dataset) -> Json:
    """Return a dataset of the run as an input in MLflow's form."""
    return {
        "tags": [{"key": "mlflow.data.context", "value": "training"}],
        "dataset": {"name": used.name, "digest": used.digest[:36], "source_type": "adapterhub", "source": used.digest},
    }


def batches(run: TrainingRun) -> Iterator[Json]:
    """Yield the bodies of log-batch calls within MLflow's limits.

    The first has the parameters, the tags and the first metrics, each further one more metrics, by step.
    """
    chosen = {**run.hyperparameters, "method": run.method, "rank_analysis": run.rank_analysis_id}
    params = [{"key": key, "value": str(value)} for key, value in chosen.items() if value is not None]
    metrics = list(metrics_of(run))
    tags = [{"key": key, "value": value} for key, value in tags_of(run).items()]
    yield {"params": params, "tags": tags, "metrics": metrics[: MOST_METRICS - 200]}
    for start in range(MOST_METRICS - 200, len(metrics), MOST_METRICS):
        yield {"metrics": metrics[start : start + MOST_METRICS]}


def metrics_of(run: TrainingRun) -> Iterator[Json]:
    """Yield the run's metrics in MLflow's form, then both held-out losses at step 0.

    All have the time of the run's end.
    """
    at = millis(run.finished_at)
    for row in run.metrics.order_by("step"):
        for name, value in row.values.items():
            if isinstance(value, int | float):
                yield {"key": name, "value": value, "timestamp": at, "step": row.step}
    for name in ("loss_before", "loss_after"):
        if (value := getattr(run, name)) is not None:
            yield {"key": f"held_out_{name}", "value": value, "timestamp": at, "step": 0}


def millis(moment: Any) -> int:
    """Return the time in milliseconds since 1970."""
    milliseconds: int = round(moment.timestamp() * 1000)
    return milliseconds
