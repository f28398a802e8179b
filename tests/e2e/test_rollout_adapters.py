"""Two adapters that were really trained, on the embedded engine, behind the router: the numbers decide, nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from django.test import Client

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent, verify
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Response, Rollout
from registry.rollouts.controller import judge_all
from registry.rollouts.outcome_ingest import collect
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import routing_table
from serving_client.engine.api.app import create_app
from serving_client.engine.engine import Engine, Limits
from serving_client.engine.model import open_model
from serving_client.router.app import Settings, make_app
from tests.builders.lessons import HALF, RIGHT, WRONG, train
from tests.fakes.server import Server
from tests.tiny_model import make_model, make_tokenizer
from tests.waiting import wait_until

STEPS = [{"weight": 25, "min_samples": 5}, {"weight": 50, "min_samples": 20}]
RAILS = [{"metric": "bad_feedback_rate", "margin": 10}]
USERS_A_ROUND = 50
ROUNDS = 12

Publish = Callable[[dict[str, str]], AdapterVersion]


@pytest.fixture
def base_model(db_or_fresh: None) -> BaseModel:
    base = BaseModel.objects.create(slug="tiny", source="tiny")
    model = make_model()
    # The control loop's probe is long.
    model.config.max_position_embeddings = 512
    model.save_pretrained(base.folder)
    make_tokenizer().save_pretrained(base.folder)
    base.inspect()
    return base


@pytest.fixture
def publish(adapter: Adapter, alice: User, tmp_path: Path) -> Publish:
    def published(lesson: dict[str, str]) -> AdapterVersion:
        folder = train(tmp_path / f"trained-{adapter.versions.count()}", lesson)
        return AdapterVersion.publish(adapter, folder, method="upload", by=alice.as_actor())

    return published


@pytest.fixture
def version(publish: Publish) -> AdapterVersion:
    return publish(HALF)


class Users:
    """People who ask through the router and say what they think of the answer."""

    def __init__(self, router: httpx.Client, token: str) -> None:
        self.router, self.headers, self.count = router, {"Authorization": f"Bearer {token}"}, 0

    def ask(self, number: int) -> tuple[str, str, bool]:
        """Response id, version, and whether the answer is right."""
        prompt = list(RIGHT)[number % len(RIGHT)]
        body = {"model": "compliance", "prompt": prompt, "max_tokens": 1, "temperature": 0, "user": f"user-{number}"}
        answer = self.router.post("/v1/completions", json=body, headers=self.headers).raise_for_status()
        is_right = answer.json()["choices"][0]["text"].strip() == RIGHT[prompt]
        return answer.headers["x-response-id"], answer.headers["x-adapter-version"], is_right

    def use(self) -> None:
        """A round of new users: each asks once and judges the answer, and everything arrives in the registry."""
        answers = [self.ask(number) for number in range(self.count, self.count + USERS_A_ROUND)]
        self.count += USERS_A_ROUND
        ids = [response for response, _, _ in answers]
        wait_until(lambda: collect() + 1 and Response.objects.filter(pk__in=ids).count() == len(ids), 60, "reports")
        for response, _, is_right in answers:
            self.judge(response, "good" if is_right else "bad")

    def judge(self, response: str, outcome: str) -> None:
        body = json.dumps({"response_id": response, "outcome": outcome})
        answer = Client().post("/api/v1/feedback/", body, content_type="application/json", headers=self.headers)
        assert answer.status_code == 201, answer.content


@pytest.fixture
def users(
    fresh_database: str, base_model: BaseModel, alias: Alias, alice: User, ci: str, tmp_path: Path
) -> Iterator[Users]:
    engine = Engine("tiny", open_model(str(base_model.folder), 512), Limits(threads=1))
    router = make_app(Settings(settings.REDIS_URL, tmp_path / "table.json", tmp_path / "outcomes.spool"))
    with Server(create_app(engine)) as replica, Server(router) as front:
        alias.cluster.add_replica(url=replica.url, by=alice.as_actor())
        with httpx.Client(base_url=front.url, timeout=60) as http:
            yield Users(http, ci)


def follow(users: Users) -> None:
    """The control loop looks, and the router has its table."""
    before = routing_table().generation
    reconcile()

    def has_it() -> bool:
        ready = users.router.get("/readyz")
        return ready.is_success and ready.json()["generation"] > before

    wait_until(has_it, 60, "the router to take the table")


def roll_out(users: Users, alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    """Open a rollout and let the loops and the users alone with it until it ends."""
    alias.refresh_from_db()
    rollout = Rollout.create(
        alias=alias, candidate=candidate, steps=STEPS, guardrails=RAILS, reason="try it", by=alice.as_actor()
    )
    for _ in range(ROUNDS):
        follow(users)
        users.use()
        judge_all()
        rollout.refresh_from_db()
        if not rollout.is_active:
            break
    follow(users)
    return rollout


def decided(rollout: Rollout) -> AuditEvent:
    event = AuditEvent.objects.about(rollout).order_by("-id").first()
    assert event.actor_name == "system:rollout"
    return event


def served_to(users: Users) -> set[str]:
    return {users.ask(number)[1] for number in range(20)}


@pytest.mark.slow
def test_the_worse_goes_back_and_the_better_reaches_everybody(
    users: Users, alias: Alias, publish: Publish, alice: User
) -> None:
    worse, better = publish(WRONG), publish(RIGHT)
    lost = roll_out(users, alias, worse, alice)
    [finding] = decided(lost).after["evidence"]["findings"]
    assert (lost.status, finding["verdict"]) == ("rolled_back", "bad")
    assert finding["difference"]["lower"] > 0.1
    assert served_to(users) == {alias.version.served_name}

    won = roll_out(users, alias, better, alice)
    [finding] = decided(won).after["evidence"]["findings"]
    assert (won.status, won.step, finding["verdict"]) == ("promoted", 1, "good")
    assert finding["difference"]["upper"] <= 0.1
    assert served_to(users) == {better.served_name}
    assert verify(alias.project)[1] == []
