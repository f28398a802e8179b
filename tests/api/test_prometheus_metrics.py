"""The control plane for Prometheus: the caller's projects alone; and Grafana's dashboard asks for nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from django.test import Client
from django.utils.timezone import now
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from adapterhub.accounts.models import ApiToken, Project
from serving_client.router.reporting.metrics import Metrics
from training.models import TrainingRun

DASHBOARD = Path(__file__).parent.parent.parent / "docs/grafana/adapterhub.json"
# As Prometheus 3 asks.
ACCEPT = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"


def scraped(token: str) -> Any:
    return Client(headers={"Authorization": f"Bearer {token}", "Accept": ACCEPT}).get("/api/v1/metrics/")


def samples(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    samples_of: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples_of.setdefault(sample.name, []).append((sample.labels, sample.value))
    return samples_of


def test_it_tells_what_is_there(world: dict[str, Any], ci: str) -> None:
    run = TrainingRun.objects.get()
    TrainingRun.objects.update(status="running", lease_expires_at=now(), progress={"step": 7, "loss": 1.5})
    answer = scraped(ci)
    assert answer["Content-Type"].startswith("text/plain; version=0.0.4")
    metrics = samples(answer.content.decode())
    assert ({"project": "eu", "kind": "training_run", "status": "running"}, 1.0) in metrics["adapterhub_jobs"]
    assert metrics["adapterhub_training_run_loss"] == [({"project": "eu", "adapter": "dora", "run": str(run.pk)}, 1.5)]
    assert metrics["adapterhub_rollout_weight_percent"][0][1] == 5
    assert metrics["adapterhub_replica_healthy"][0][1] == 0
    assert metrics["adapterhub_approvals_pending"] == [({"project": "eu"}, 1.0)]
    assert metrics["adapterhub_oldest_queued_job_seconds"][0][1] > 0


def test_another_tenant_sees_nothing_of_it(world: dict[str, Any]) -> None:
    _, token = ApiToken.issue(name="other", project=Project.objects.get(slug="other"), scopes=["read"])
    of_the_installation = {"adapterhub_valkey_up", "adapterhub_queue_age_seconds", "adapterhub_task_age_seconds"}
    assert samples(scraped(token).content.decode()).keys() <= {*of_the_installation, "adapterhub_loop_age_seconds"}
    _, blind = ApiToken.issue(name="blind", project=Project.objects.get(slug="eu"), scopes=["infer"])
    assert samples(scraped(blind).content.decode()) == {}
    assert scraped("ah_wrong_token").status_code == 401


def test_the_dashboard_asks_for_what_is_told(world: dict[str, Any], ci: str) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queried = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"adapterhub_\w+", target["expr"])
    }
    router = generate_latest(Metrics().registry).decode()
    known = set(re.findall(r"^# TYPE (adapterhub_\w+)", router + scraped(ci).content.decode(), re.M))
    known |= {f"{name}_bucket" for name in known}
    assert len(queried) > 10
    assert queried <= known, queried - known
