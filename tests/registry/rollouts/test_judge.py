"""A judge's scores from the router to the verdict: what it is shown, what is kept, and what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings as installed
from django.utils.timezone import now
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from adapterhub import outbound
from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.core.errors import Invalid
from registry.models import AdapterVersion, Alias, Rollout
from registry.rollouts.controller import judge, judge_and_act
from registry.rollouts.judge_queue import judge_waiting
from registry.rollouts.outcome_ingest import collect
from registry.serving.reconciler import RECONCILER
from registry.serving.routing_table import publish, routing_table
from registry.serving.valkey import valkey
from serving_client.protocol import SAMPLES
from serving_client.router.app import Settings, make_app
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server, closed_url
from tests.waiting import wait_until

JUDGE = {"instruction": "Names the article.", "sample": 100}
RAILS = [{"metric": "judge_score", "margin": 1}]
QUESTION = "What does Jane Doe of 1 Elm Street owe?"


class Judge:
    """The far side: keeps what it is asked, and answers with the next of `script`, else with a good score."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.script: list[Response] = []

    async def answer(self, request: Request) -> Response:
        self.requests.append(
            {"host": request.headers["host"], "key": request.headers["authorization"], **await request.json()}
        )
        return self.script.pop(0) if self.script else reply_of('{"score": 8}')

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/chat/completions", self.answer, methods=["POST"])])


def reply_of(text: str, status: int = 200) -> Response:
    return JSONResponse({"choices": [{"message": {"role": "assistant", "content": text}}]}, status)


@pytest.fixture
def far_side(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Iterator[Judge]:
    """Stands at judge.example; only the look-up of its name is replaced."""
    settings.JUDGE_URL, settings.JUDGE_MODEL, settings.JUDGE_KEY = "https://judge.example/v1", "big", "sesame"
    judge_server = Judge()
    with Server(judge_server.app()) as server:
        stand_at(monkeypatch, server.url)
        yield judge_server


def stand_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    target = (f"{url}/v1/chat/completions", "judge.example")
    monkeypatch.setattr(outbound, "pinned", lambda url, allowed, *, may_be_inside: target)


def opened(alias: Alias, candidate: AdapterVersion, user: User, **plan: Any) -> Rollout:
    fields = {"checks": {"judge": JUDGE}, "guardrails": RAILS, "steps": [{"weight": 50}], **plan}
    rollout = Rollout.create(alias=alias, candidate=candidate, reason="try", by=user.as_actor(), **fields)
    rollout.started(by=RECONCILER)
    return rollout


@pytest.fixture
def rollout(fresh_database: str, far_side: Judge, alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    return opened(alias, candidate, alice)


Ask = Callable[[str], httpx.Response]


@pytest.fixture
def ask(rollout: Rollout, ci: str, tmp_path: Path) -> Iterator[Ask]:
    """A request through a real router, to an engine that holds both versions."""
    engine = FakeEngine(rollout.stable.served_name, rollout.candidate.served_name)
    router = make_app(Settings(installed.REDIS_URL, tmp_path / "table.json"))
    with Server(engine.app()) as replica, Server(router) as front:
        loaded = {rollout.stable.served_name: "/a", rollout.candidate.served_name: "/b"}
        rollout.alias.cluster.replicas.create(url=replica.url, is_healthy=True, loaded=loaded)
        table = publish()
        with httpx.Client(base_url=front.url, timeout=30, headers={"Authorization": f"Bearer {ci}"}) as http:
            wait_until(lambda: http.get("/readyz").is_success, what="the router")
            assert table.versions[rollout.candidate.served_name].replicas

            def send(user: str) -> httpx.Response:
                return http.post("/v1/completions", json={"model": "compliance", "prompt": QUESTION, "user": user})

            yield send


def waiting() -> int:
    with valkey() as client:
        return int(client.llen(SAMPLES))


def test_from_the_router_to_the_verdict(ask: Ask, rollout: Rollout, far_side: Judge) -> None:
    answers = [ask(f"user-{number % 30}") for number in range(40)]
    assert {answer.status_code for answer in answers} == {200}
    wait_until(lambda: waiting() == 40, what="the samples")
    text = answers[0].json()["choices"][0]["text"]
    with valkey() as client:
        names = client.lrange(SAMPLES, 0, -1)
        for name in names:
            assert 0 < client.ttl(name) <= 300
            assert b"Jane" not in client.get(name)
    assert judge_waiting() == 40
    question = far_side.requests[0]
    assert (question["host"], question["key"], question["model"]) == ("judge.example", "Bearer sesame", "big")
    assert "Names the article." in question["messages"][0]["content"]
    assert json.loads(question["messages"][1]["content"]) == {"question": QUESTION, "answer": text}
    with valkey() as client:
        assert client.keys(f"{SAMPLES}*") == []
    rows = list(rollout.minutes.filter(metric="judge_score"))
    assert (sum(row.count for row in rows), {row.total / row.count for row in rows}) == (30, {8})
    collect()
    assert judge(rollout, now()).findings[0].guardrail.metric == "judge's score"
    trail = " ".join(str(event.after) for event in AuditEvent.objects.all())
    assert "Names the article." in trail
    assert "Jane" not in trail


@pytest.mark.slow
def test_a_worse_candidate_is_rolled_back_by_its_scores(ask: Ask, rollout: Rollout, far_side: Judge) -> None:
    arms: dict[str, int] = {}
    for number in range(200):
        arm = ask(f"user-{number}").headers["x-rollout-arm"]
        wait_until(lambda: waiting() == 1, what="the sample")
        points = 9 - number % 2 - (5 if arm == "candidate" else 0)
        far_side.script = [reply_of(json.dumps({"score": points}))]
        assert judge_waiting() == 1
        arms[arm] = arms.get(arm, 0) + 1
        if min(arms.get("candidate", 0), arms.get("control", 0)) >= 60:
            break
    analysis = judge_and_act(rollout, now())
    assert (analysis.findings[0].verdict, rollout.status) == ("bad", "rolled_back")


BROKEN = {
    "refuses": reply_of('{"score": 8}', 500),
    "says something else": reply_of("The answer is very good."),
    "changes its mind": reply_of('{"score": 1} no, {"score": 9}'),
    "leaves the scale": reply_of('{"score": 99}'),
    "has no choices": JSONResponse({"error": "no"}),
    "sends on": RedirectResponse("http://169.254.169.254/"),
    "talks for ever": Response(b"x" * (outbound.MOST_BYTES + 1)),
}


@pytest.mark.parametrize("how", [*BROKEN, "is away"])
def test_a_broken_judge_is_a_missing_number_and_pauses(
    ask: Ask,
    rollout: Rollout,
    far_side: Judge,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    if how == "is away":
        stand_at(monkeypatch, closed_url())
    else:
        far_side.script = [BROKEN[how]]
    assert ask("me").status_code == 200
    wait_until(lambda: waiting() == 1, what="the sample")
    assert judge_waiting() == 0
    assert (waiting(), rollout.minutes.filter(metric="judge_score").count()) == (0, 0)
    assert "The judge gave no score" in caplog.text
    assert "Jane" not in caplog.text
    judge_and_act(rollout, now() + timedelta(minutes=6))
    assert rollout.status == "paused"


def test_a_judge_in_trouble_is_left_alone_and_one_worker_asks(ask: Ask, far_side: Judge) -> None:
    for number in range(20):
        ask(f"user-{number}")
    wait_until(lambda: waiting() == 20, what="the samples")
    far_side.script = [reply_of("", 500)]
    assert judge_waiting() == 7
    assert (waiting(), len(far_side.requests)) == (12, 8)
    with valkey() as client:
        client.set("ah:judging", 1)
    assert judge_waiting() == 0
    assert waiting() == 12


def test_texts_of_a_rollout_that_has_ended_are_shown_to_nobody(
    ask: Ask, rollout: Rollout, far_side: Judge, alice: User
) -> None:
    ask("me")
    wait_until(lambda: waiting() == 1, what="the sample")
    rollout.rollback(reason="enough", by=alice.as_actor())
    assert judge_waiting() == 0
    assert (waiting(), far_side.requests) == (0, [])


def test_only_what_is_asked_for_is_sampled(rollout: Rollout, far_side: Judge, settings: Any) -> None:
    route = routing_table().aliases["eu/compliance"].rollout
    assert route
    assert route.sampling
    assert route.sampling.percent == 100
    settings.JUDGE_URL = ""
    route = routing_table().aliases["eu/compliance"].rollout
    assert route
    assert route.sampling is None
    assert judge_waiting() == 0


@pytest.mark.parametrize(
    ("plan", "field"), [({"checks": {}}, "guardrails"), ({"checks": {"judge": JUDGE}}, "checks.judge")]
)
def test_a_judge_that_is_missing_is_named(
    alias: Alias, candidate: AdapterVersion, alice: User, plan: dict[str, Any], field: str
) -> None:
    with pytest.raises(Invalid) as refusal:
        opened(alias, candidate, alice, **plan)
    assert refusal.value.field == field


def test_what_an_operator_set_may_lie_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("10.0.0.7", 443))])
    assert outbound.pinned("https://judge.lan/v1", ["judge.lan"], may_be_inside=True)[0] == "https://10.0.0.7:443/v1"
    with pytest.raises(outbound.Forbidden):
        outbound.pinned("http://judge.lan/v1", ["judge.lan"], may_be_inside=True)
    with pytest.raises(outbound.Forbidden):
        outbound.pinned("https://judge.lan/v1", ["judge.lan"])
