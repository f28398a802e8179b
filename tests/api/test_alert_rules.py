"""The rules for Prometheus: valid, about metrics that there are, silent when all is well, and each made to fire."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.test import Client
from django.utils.timezone import now
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from adapterhub.jobs.task_times import SENT_AT, note_success
from registry.models import Cluster, Replica
from registry.serving.valkey import valkey as connect
from registry.tasks import look_at_rollouts, reconcile
from serving_client.protocol import TASK_SUCCESSES
from serving_client.router.reporting.metrics import Metrics
from tests.tools import program, requires
from training.models import TrainingRun

RULES = Path(__file__).parents[2] / "docs/prometheus/alerts.yml"
SAMPLE = re.compile(r"(?P<name>adapterhub_\w+)(?:\{(?P<label>\w+)=~?\"(?P<value>[^\"]+)\"\})?")
EXPRESSION = re.compile(rf"(?:increase\()?{SAMPLE.pattern}(?:\[\w+\]\))? (?P<operator>>|==) (?P<bound>\d+)")
Samples = list[tuple[str, dict[str, str], float]]


def rules() -> dict[str, str]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule["expr"] for rule in group["rules"]}


def samples(control_plane: str, router: Metrics) -> Samples:
    text = control_plane + generate_latest(router.registry).decode()
    families = text_string_to_metric_families(text)
    return [(sample.name, sample.labels, sample.value) for family in families for sample in family.samples]


def firing(known: Samples) -> set[str]:
    return {alert for alert, expression in rules().items() if any(matching(expression, known))}


def matching(expression: str, known: Samples) -> Iterator[bool]:
    """An increase counts from zero, which is where a counter begins."""
    parts = EXPRESSION.fullmatch(expression)
    assert parts, expression
    bound = float(parts["bound"])
    for name, labels, number in known:
        if name == parts["name"] and re.fullmatch(parts["value"] or ".*", labels.get(parts["label"] or "", "")):
            yield number > bound if parts["operator"] == ">" else number == bound


@pytest.fixture
def scrape(world: dict[str, Any], ci: str, valkey: object) -> Any:
    def text() -> str:
        return Client(headers={"Authorization": f"Bearer {ci}"}).get("/api/v1/metrics/").content.decode()

    return text


def test_each_has_an_expression_that_these_tests_read() -> None:
    assert len(rules()) >= 10
    assert [expression for expression in rules().values() if not EXPRESSION.fullmatch(expression)] == []


@requires("promtool")
def test_prometheus_takes_them() -> None:
    done = subprocess.run([program("promtool"), "check", "rules", str(RULES)], check=False, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_none_fires_when_all_is_well(scrape: Any) -> None:
    for task in (reconcile, look_at_rollouts):
        note_success(task.name)
    Cluster.objects.update(reconciled_at=now())
    Replica.objects.update(is_healthy=True, seen_at=now())
    known = samples(scrape(), Metrics())
    assert firing(known) == set()
    named = {SAMPLE.search(expression)["name"] for expression in rules().values()}  # type: ignore[index]
    assert named <= {name for name, _, _ in known} | {"adapterhub_queue_age_seconds"}


def test_each_fires_on_what_it_is_for(scrape: Any, settings: Any) -> None:
    long_ago = time.time() - 100_000
    with connect() as server:
        server.hset(TASK_SUCCESSES, mapping={reconcile.name: long_ago, look_at_rollouts.name: long_ago})
        for queue in ("control", "download"):
            server.lpush(queue, f'{{"headers": {{"{SENT_AT}": {long_ago}}}}}')
    Cluster.objects.update(reconciled_at=now() - timedelta(hours=1))
    # It answered when somebody last asked, an hour ago: that is no sign of health.
    Replica.objects.update(is_healthy=True, seen_at=now() - timedelta(hours=1))
    TrainingRun.objects.update(created_at=now() - timedelta(days=2))
    router = Metrics()
    router.age.set(700)
    router.dropped.set(1)
    fires = firing(samples(scrape(), router))
    assert fires == set(rules()) - {"ValkeyIsAway"}
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    assert "ValkeyIsAway" in firing(samples(scrape(), router))
