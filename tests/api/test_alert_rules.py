"""The rules for Prometheus: valid, about metrics that there are, silent when all is well, and each made to fire."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from django.db import connections
from django.test import Client
from django.utils.timezone import now
from prometheus_client import generate_latest

from adapterhub.jobs.task_times import SENT_AT, note_success
from registry.models import Cluster, Replica
from registry.serving.valkey import valkey as connect
from registry.tasks import look_at_rollouts, reconcile
from serving_client.protocol import TASK_SUCCESSES
from serving_client.router.reporting.metrics import Metrics
from tests.api.alert_rules import EXPRESSION, RULES, SAMPLE, Samples, breaching, firing, rules, samples, written
from tests.tools import program, requires
from tests.waiting import wait_until
from training.models import TrainingRun


@pytest.fixture
def scrape(world: dict[str, Any], ci: str, valkey: object) -> Any:
    def text() -> str:
        return Client(headers={"Authorization": f"Bearer {ci}"}).get("/api/v1/metrics/").content.decode()

    return text


def told_by(router: Metrics) -> str:
    return generate_latest(router.registry).decode()


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
    known = samples(scrape(), told_by(Metrics()))
    assert firing(known) == set()
    named = {SAMPLE.search(expression)["name"] for expression in rules().values()}  # type: ignore[index]
    assert named <= {name for name, _, _ in known} | {"adapterhub_queue_age_seconds"}


@pytest.fixture
def in_trouble(scrape: Any, settings: Any) -> Samples:
    """The samples of an installation in which everything that a rule is for has happened."""
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
    known = samples(scrape(), told_by(router))
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    away = [sample for sample in samples(scrape(), told_by(router)) if sample[0] == "adapterhub_valkey_up"]
    return [sample for sample in known if sample[0] != "adapterhub_valkey_up"] + away


def test_each_fires_on_what_it_is_for(in_trouble: Samples) -> None:
    assert firing(in_trouble) == set(rules())


@pytest.fixture
def loop(valkey: object, settings: Any) -> Iterator[int]:
    """The process id of a control loop that begins a round every 50 ms."""
    schedule = settings.CELERY_BEAT_SCHEDULE
    settings.CELERY_BEAT_SCHEDULE = {**schedule, "reconcile": {**schedule["reconcile"], "schedule": 0.05}}
    process = multiprocessing.get_context("fork").Process(target=reconcile_for_ever)
    process.start()
    assert process.pid
    yield process.pid
    process.kill()
    process.join(10)


def reconcile_for_ever() -> None:
    for connection in connections.all():
        # That of the process that forked this one.
        connection.connection = None
    call_command("reconcile", loop=True)


def test_a_loop_that_stands_still_fires_until_it_goes_on(scrape: Any, loop: int) -> None:
    def a_minute_passes() -> None:
        with connect() as server:
            server.hset(TASK_SUCCESSES, reconcile.name, time.time() - 61)

    def is_stalled() -> bool:
        return "ControlLoopStalled" in firing(samples(scrape()))

    a_minute_passes()
    wait_until(lambda: not is_stalled(), what="a round of the loop")
    os.kill(loop, signal.SIGSTOP)
    wait_until(lambda: Path(f"/proc/{loop}/stat").read_text().rpartition(")")[2].split()[0] == "T", what="its stop")
    a_minute_passes()
    assert is_stalled()
    os.kill(loop, signal.SIGCONT)
    wait_until(lambda: not is_stalled(), what="a round of the loop that goes on")


@requires("promtool")
def test_prometheus_fires_each_once_it_has_held_for_as_long_as_it_says(in_trouble: Samples, tmp_path: Path) -> None:
    """A condition that holds, ends for a moment and begins again has to hold for the whole time from there."""
    simulations = [simulation(rule, *next(breaching(rule["expr"], in_trouble))) for rule in written()]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": simulations}))
    command = [program("promtool"), "test", "rules", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def simulation(rule: dict[str, Any], name: str, labels: dict[str, str]) -> dict[str, Any]:
    """A test in promtool's form: a sample a minute, bad for as long as the rule says, good once, then bad for good."""
    parts = EXPRESSION.fullmatch(rule["expr"])
    assert parts
    minutes = int(rule.get("for", "0m").removesuffix("m"))
    good, bad = (0, int(parts["bound"]) + 1) if parts["operator"] == ">" else (1, 0)
    values = " ".join(str(value) for value in [bad] * minutes + [good] + [bad] * (minutes + 1))
    metric = f"{name}{{{','.join(f'{label}={json.dumps(value)}' for label, value in labels.items())}}}"
    fires = {
        "exp_labels": labels | rule["labels"],
        "exp_annotations": {key: filled_in(text, labels) for key, text in rule["annotations"].items()},
    }
    checks = [(max(minutes - 1, 0), []), (2 * minutes, []), (2 * minutes + 1, [fires])]
    return {
        "interval": "1m",
        "input_series": [{"series": metric, "values": values}],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": rule["alert"], "exp_alerts": alerts} for minute, alerts in checks
        ],
    }


def filled_in(text: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda label: labels[label[1]], text)
