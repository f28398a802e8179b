"""Mixed load while versions are promoted and replicas are killed: nobody gets another version's words, or an error.

The two versions were trained on different texts.

In full a promotion every 20 s and a killed replica every 60 s, for ten minutes.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import User
from registry.models import Adapter, AdapterVersion, Alias, Cluster, Rollout, RolloutStatus
from registry.serving.reconciler import reconcile
from registry.serving.routing_table import routing_table
from serving_client import EngineClient
from serving_client.router.app import Settings, make_app
from tests.crowd import COUNT, CUT, PROMPT, Crowd, counts_by_version
from tests.fakes.server import Server
from tests.soak.engine_process import EngineProcess
from tests.soak.hundreds import trained
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

STREAMS = 3  # each third question
CHECK_EVERY_S = 1.0
PROMOTIONS, KILLS = 30, 10  # of a full run


@pytest.fixture
def make_version(alice: User, tmp_path: Path, model_folder: Path) -> Callable[..., AdapterVersion]:
    def make(adapter: Adapter, *, seed: int = 0) -> AdapterVersion:
        folder = trained(model_folder, tmp_path / f"{adapter.slug}-{seed}", seed)
        return AdapterVersion.publish(adapter, folder, method="upload", by=alice.as_actor())

    return make


@pytest.fixture
def engines(fresh_database: str, cluster: Cluster, model_folder: Path, alice: User) -> Iterator[list[EngineProcess]]:
    engines = [EngineProcess(model_folder) for _ in range(2)]
    try:
        for engine in engines:
            engine.start()
        for engine in engines:
            engine.ready()
            cluster.add_replica(url=engine.url, by=alice.as_actor())
        yield engines
    finally:
        for engine in engines:
            engine.kill()


@pytest.fixture
def router(fresh_database: str, settings: Any, tmp_path: Path) -> Iterator[str]:
    with Server(make_app(Settings(settings.REDIS_URL, tmp_path / "table.json", tmp_path / "spool"))) as front:
        yield front.url


class Fleet:
    """The alias, its two versions that take turns, and the replicas."""

    def __init__(self, alias: Alias, versions: list[AdapterVersion], engines: list[EngineProcess], alice: User) -> None:
        self.alias, self.by = alias, alice.as_actor()
        self.turns = itertools.cycle(reversed(versions))
        self.victims = itertools.cycle(engines)
        self.lost: EngineProcess | None = None
        self.rollout: Rollout | None = None

    def promote(self) -> None:
        """The rollout that runs ends with its candidate; the next one begins."""
        if self.rollout:
            self.rollout.refresh_from_db()
            if self.rollout.status != RolloutStatus.RUNNING:
                return
            self.rollout.promote(reason="soak", by=self.by)
            self.alias.refresh_from_db()
        self.rollout = Rollout.create(
            alias=self.alias, candidate=next(self.turns), steps=[{"weight": 50}], reason="soak", by=self.by
        )

    def kill(self) -> None:
        """One replica at a time is away; it starts again at once, and empty."""
        self.lost = next(self.victims)
        self.lost.kill()
        self.lost.start()

    def check(self) -> None:
        if self.lost and self.lost.answers():
            self.lost = None
        reconcile()


def words(engine: EngineProcess, versions: list[AdapterVersion]) -> dict[str, str]:
    """What each version answers, from an engine that was given it by hand."""
    words_of = {}
    with EngineClient(engine.url) as client:
        for version in versions:
            client.load_adapter("asked", str(version.served_folder()))
            words_of[version.served_name] = client.complete("asked", PROMPT, max_tokens=COUNT).text
            client.unload_adapter("asked")
    assert len(set(words_of.values())) == len(versions), "versions must differ to prove anything"
    return words_of


def test_nobody_gets_another_versions_words_or_an_error(
    soak_s: float,
    engines: list[EngineProcess],
    alias: Alias,
    version: AdapterVersion,
    candidate: AdapterVersion,
    router: str,
    ci: str,
    alice: User,
) -> None:
    expected = words(engines[0], [version, candidate])
    fleet = Fleet(alias, [version, candidate], engines, alice)
    reconcile()
    wait_until(lambda: len(routing_table().versions[version.served_name].replicas) == 2, 60, "both hold the version")
    promote_s, kill_s = max(3.0, soak_s / PROMOTIONS), max(12.0, soak_s / KILLS)
    began = time.monotonic()
    next_promotion, next_kill, promotions, kills = 0.0, kill_s / 2, 0, 0
    with Crowd(router, ci, streams=STREAMS).asking() as crowd:
        while (passed := time.monotonic() - began) < soak_s:
            if passed >= next_promotion:
                fleet.promote()
                next_promotion, promotions = passed + promote_s, promotions + 1
            if passed >= next_kill and fleet.lost is None:
                fleet.kill()
                next_kill, kills = passed + kill_s, kills + 1
            fleet.check()
            time.sleep(CHECK_EVERY_S)
    statuses = Counter(answer.status for answer in crowd.answers)
    assert set(statuses) <= {200, CUT}, counts_by_version(crowd.answers)
    assert statuses[CUT] <= kills * 4, "at most what each kill found under way"
    wrong = [answer for answer in crowd.answers if answer.status == 200 and answer.text != expected[answer.version]]
    assert not wrong
    assert promotions > 2
    assert kills > 0
    assert {answer.version for answer in crowd.answers} == set(expected)
