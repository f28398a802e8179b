"""Load, A/B, promotion, rollback, a killed replica, a refused adapter: control loop and router over two vLLMs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent
from registry.models import Adapter, AdapterVersion, Alias, BaseModel, Cluster, Replica, Rollout, RolloutStatus
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import routing_table
from serving_client import EngineClient
from serving_client.router.app import Settings, make_app
from tests.crowd import COUNT, PROMPT, Crowd, counts_by_version, versions
from tests.fakes.server import Server
from tests.vllm.server import MAX_RANK, SLOTS, VllmServer, running
from tests.waiting import wait_until


@dataclass
class Hub:
    """The control plane, the router and two real engines."""

    alias: Alias
    router: str
    token: str
    engines: list[VllmServer]
    words: dict[str, str]

    def follow(self) -> None:
        """The control loop looks, and the router has its table."""
        before = routing_table().generation
        reconcile()
        wait_until(lambda: self._generation() > before, 60, "the router to take the table")

    def _generation(self) -> int:
        ready = httpx.get(f"{self.router}/readyz")
        return int(ready.json()["generation"]) if ready.is_success else -1

    def learn(self, *versions_asked: AdapterVersion) -> None:
        """What each version answers, from the engine itself."""
        for version in versions_asked:
            with EngineClient(self.engines[0].url, timeout_s=60) as engine:
                self.words[version.served_name] = engine.complete(version.served_name, PROMPT, max_tokens=COUNT).text
        assert len(set(self.words.values())) == len(self.words), "versions must differ to prove anything"

    @contextmanager
    def crowd(self) -> Iterator[Crowd]:
        """Nobody in it may get an error, or another version's words."""
        with Crowd(self.router, self.token).asking() as crowd:
            yield crowd
        assert {answer.status for answer in crowd.answers} == {200}, counts_by_version(crowd.answers)
        assert all(answer.text == self.words[answer.version] for answer in crowd.answers)


@pytest.fixture
def cluster(project: Project, base_model: BaseModel, alice: User) -> Cluster:
    return Cluster.create(
        project=project,
        slug="fleet",
        base_model=base_model,
        by=alice.as_actor(),
        engine="vllm",
        max_lora_rank=MAX_RANK,
        max_loras=SLOTS,
    )


@pytest.fixture
def hub(
    fresh_database: str, empty: list[VllmServer], alias: Alias, alice: User, ci: str, tmp_path: Path, settings: Any
) -> Iterator[Hub]:
    router = make_app(Settings(settings.REDIS_URL, tmp_path / "table.json", tmp_path / "outcomes.spool"))
    with Server(router) as front:
        for engine in empty:
            alias.cluster.add_replica(url=engine.url, by=alice.as_actor())
        yield Hub(alias, front.url, ci, empty, {})


def open_rollout(hub: Hub, candidate: AdapterVersion, alice: User, weight: int = 50) -> Rollout:
    return Rollout.create(
        alias=hub.alias, candidate=candidate, steps=[{"weight": weight}], reason="try", by=alice.as_actor()
    )


def test_split_promote_and_roll_back_under_load(hub: Hub, candidate: AdapterVersion, alice: User) -> None:
    rollout = open_rollout(hub, candidate, alice)
    hub.follow()
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.RUNNING
    stable = hub.alias.version
    hub.learn(stable, candidate)
    both = {stable.served_name, candidate.served_name}
    with hub.crowd() as crowd:
        crowd.until(lambda answers: versions(answers) == both, "both arms to be served")
        rollout.promote(reason="better", by=alice.as_actor())
        hub.follow()
        crowd.until(
            lambda answers: len(answers) > 40 and versions(answers[20:]) == {candidate.served_name},
            "the candidate alone",
        )
        rollout.rollback(reason="worse after all", by=alice.as_actor())
        hub.follow()
        crowd.until(
            lambda answers: len(answers) > 40 and versions(answers[20:]) == {stable.served_name},
            "the old version alone",
        )


def test_a_replica_killed_under_load_fails_nobody_and_is_healed_when_it_is_back_empty(hub: Hub) -> None:
    hub.follow()
    hub.learn(hub.alias.version)
    name = hub.alias.version.served_name
    lost = hub.engines[1]
    with hub.crowd() as crowd:
        crowd.until(lambda answers: len(answers) > 20, "traffic")
        lost.kill()
        crowd.until(lambda answers: len(answers) > 40, "traffic on the other replica")
        hub.follow()
        assert routing_table().versions[name].replicas == (hub.engines[0].url,)
        lost.start()
        lost.ready()
        hub.follow()
        assert set(routing_table().versions[name].replicas) == {engine.url for engine in hub.engines}
        crowd.until(lambda answers: len(answers) > 40, "traffic on both")
    with EngineClient(lost.url, timeout_s=60) as engine:
        assert engine.complete(name, PROMPT, max_tokens=COUNT).text == hub.words[name]


def test_a_load_whose_answer_was_lost_is_checked_and_other_weights_are_replaced(
    hub: Hub, candidate: AdapterVersion
) -> None:
    version = hub.alias.version
    with EngineClient(hub.engines[0].url) as first, EngineClient(hub.engines[1].url) as second:
        first.load_adapter(version.served_name, str(version.served_folder()))
        second.load_adapter(version.served_name, str(candidate.served_folder()))
        hub.follow()
        hub.learn(version)
        assert second.complete(version.served_name, PROMPT, max_tokens=COUNT).text == hub.words[version.served_name]
    assert len(routing_table().versions[version.served_name].replicas) == 2


def test_an_adapter_that_vllm_refuses_fails_its_rollout_alone(
    hub: Hub, adapter: Adapter, make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    Cluster.objects.update(max_lora_rank=128)  # The declaration is wrong: this vLLM takes 64.
    hub.alias.cluster.refresh_from_db()
    rollout = open_rollout(hub, make_version(adapter, seed=5, r=128, lora_alpha=128), alice)
    hub.follow()
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.FAILED
    refused = AuditEvent.objects.filter(tag="replica:load_refused")
    assert refused.count() == 2
    assert "rank is above the engine's --max-lora-rank" in refused.first().reason
    hub.learn(hub.alias.version)
    with hub.crowd() as crowd:
        crowd.until(lambda answers: len(answers) > 20, "the stable version goes on")


@pytest.fixture
def narrow(model_folder: Path, tmp_path: Path) -> Iterator[VllmServer]:
    """A server that takes no rank above 8."""
    with running(model_folder, tmp_path, 8) as (server,):
        yield server


def test_a_version_that_one_of_two_replicas_refuses_gets_no_traffic(
    narrow: VllmServer, hub: Hub, adapter: Adapter, make_version: Callable[..., AdapterVersion], alice: User
) -> None:
    Replica.objects.filter(url=hub.engines[1].url).update(url=narrow.url)
    hub.follow()
    stable = hub.alias.version
    rollout = open_rollout(hub, make_version(adapter, seed=6, r=32, lora_alpha=32), alice, 100)
    hub.learn(stable)
    with hub.crowd() as crowd:
        hub.follow()
        crowd.until(lambda answers: len(answers) > 20, "traffic after the refusal")
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.FAILED
    reason = AuditEvent.objects.get(tag="rollout:failed").reason
    assert reason.startswith(f"1 of 2 replicas refused it. {narrow.url}: ")
    assert "rank is above the engine's --max-lora-rank" in reason
    assert AuditEvent.objects.filter(
        tag="replica:version_loaded", after__version=rollout.candidate.served_name
    ).exists()
    hub.follow()
    assert routing_table().versions[rollout.candidate.served_name].replicas == ()
    for engine in (hub.engines[0], narrow):
        with EngineClient(engine.url) as client:
            assert {model.name for model in client.models()} == {"tiny", stable.served_name}


def test_an_answer_that_runs_is_finished_after_its_version_was_replaced(
    hub: Hub, candidate: AdapterVersion, alice: User, settings: Any
) -> None:
    settings.ROLLBACK_WINDOW = timedelta(0)
    hub.follow()
    stable = hub.alias.version
    body = {"model": "compliance", "prompt": PROMPT, "max_tokens": 200, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {hub.token}"}
    with httpx.stream("POST", f"{hub.router}/v1/completions", json=body, headers=headers, timeout=120) as answer:
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        rollout = open_rollout(hub, candidate, alice, 100)
        hub.follow()
        rollout.refresh_from_db()
        rollout.promote(reason="better", by=alice.as_actor())
        hub.follow()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert answer.headers["x-adapter-version"] == stable.served_name
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    hub.follow()
    with EngineClient(hub.engines[0].url) as engine:
        assert {model.name for model in engine.models()} == {"tiny", candidate.served_name}


def test_responses_without_a_state_pass_through(hub: Hub) -> None:
    hub.follow()
    headers = {"Authorization": f"Bearer {hub.token}"}
    body = {"model": "compliance", "input": "What is owed?", "max_output_tokens": 8, "temperature": 0}
    whole = httpx.post(f"{hub.router}/v1/responses", json=body, headers=headers, timeout=120)
    assert whole.status_code == 200, whole.text
    answer = whole.json()
    assert answer["model"] == whole.headers["x-adapter-version"] == hub.alias.version.served_name
    assert (answer["object"], 1 <= answer["usage"]["output_tokens"] <= 8) == ("response", True)
    with httpx.stream(
        "POST", f"{hub.router}/v1/responses", json=body | {"stream": True}, headers=headers, timeout=120
    ) as stream:
        text = stream.read().decode()
    assert (stream.status_code, "event: response.completed" in text) == (200, True), text
    for state in ({"previous_response_id": "resp_1"}, {"store": True}, {"background": True}):
        refused = httpx.post(f"{hub.router}/v1/responses", json=body | state, headers=headers)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, next(iter(state)))
