"""Rollouts whose users stream with the defaults of OpenAI's clients, which ask for no counts of tokens."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from django.db.models import Sum

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Alias, Response, Rollout
from registry.rollouts.controller import judge_all
from registry.rollouts.outcome_ingest import collect
from registry.serving.routing_table import publish
from serving_client.router.app import Settings, make_app
from tests.builders.rollouts import opened
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server
from tests.tools import CLIENTS_PYTHON, requires
from tests.waiting import wait_until

RAILS = [{"metric": "empty_rate", "margin": 5}, {"metric": "length", "margin": 50, "kind": "signal"}]
USERS = 120


@pytest.fixture
def rollout(fresh_database: str, alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    return opened(alias, candidate, alice, steps=[{"weight": 50}], guardrails=RAILS)


@pytest.fixture
def engine(rollout: Rollout) -> FakeEngine:
    return FakeEngine(rollout.stable.served_name, rollout.candidate.served_name)


def stream_plainly(url: str, token: str) -> None:
    """Send what OpenAI's SDK sends."""
    with httpx.Client(base_url=f"{url}/v1", timeout=30, headers={"Authorization": f"Bearer {token}"}) as http:
        for number in range(USERS):
            messages = [{"role": "user", "content": "What is owed?"}]
            body = {"model": "compliance", "messages": messages, "stream": True, "user": f"user-{number}"}
            assert http.post("/chat/completions", json=body).text.endswith("data: [DONE]\n\n")


def stream_by_the_sdk(url: str, token: str) -> None:
    script = Path(__file__).parents[2] / "clients/stream_many.py"
    environ = {**os.environ, "OPENAI_API_KEY": token, "PYTHONPATH": ""}
    subprocess.run([CLIENTS_PYTHON, script, url, str(USERS)], env=environ, check=True)


@pytest.fixture(params=[stream_plainly, pytest.param(stream_by_the_sdk, marks=[pytest.mark.slow, requires("clients")])])
def use(
    rollout: Rollout, engine: FakeEngine, ci: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], None]]:
    """Each user streams one answer, and the reports arrive in the registry."""
    router = make_app(Settings(settings.REDIS_URL, tmp_path / "table.json"))
    with Server(engine.app()) as replica, Server(router) as front:
        rollout.alias.cluster.replicas.create(url=replica.url, is_healthy=True, loaded=dict(engine.adapters))
        publish()
        wait_until(lambda: httpx.get(f"{front.url}/readyz").is_success, what="the router")

        def stream_all() -> None:
            request.param(front.url, ci)
            wait_until(lambda: collect() + 1 and Response.objects.count() == USERS, what="the reports")

        yield stream_all


def mean(rollout: Rollout, arm: str, metric: str) -> float:
    sums = rollout.minutes.filter(arm=arm, metric=metric).aggregate(total=Sum("total"), count=Sum("count"))
    return sums["total"] / sums["count"]


def test_a_candidate_of_empty_streams_is_rolled_back(
    use: Callable[[], None], rollout: Rollout, engine: FakeEngine
) -> None:
    engine.words[rollout.candidate.served_name] = []
    use()
    judge_all()
    rollout.refresh_from_db()
    assert rollout.status == "rolled_back"
    assert "empty answers" in AuditEvent.objects.filter(tag="rollout:rolled_back").latest("id").reason
    assert [mean(rollout, arm, "empty_rate") for arm in ("control", "candidate")] == [0, 1]


def test_a_healthy_candidate_is_measured(use: Callable[[], None], rollout: Rollout, engine: FakeEngine) -> None:
    engine.words[rollout.candidate.served_name] = [" three", " short", " words"]
    use()
    judge_all()
    rollout.refresh_from_db()
    assert rollout.status == "running"
    assert [mean(rollout, arm, "length") for arm in ("control", "candidate")] == [2, 3]
    assert [mean(rollout, arm, "cost") for arm in ("control", "candidate")] == [5, 6]
    assert [mean(rollout, arm, "empty_rate") for arm in ("control", "candidate")] == [0, 0]
