"""Replicas are added, drained, killed and renamed while 32 clients of four projects call 60 aliases.

First what is placed on six embedded engines of eight slots, and what moves when one goes and comes; then the load. In
full ten minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from adapterhub.audit.tags import Tag
from registry.models import Alias, Cluster, Replica
from registry.serving.desired_versions import desired_state
from registry.serving.routing_table import publish, routing_table
from serving_client.router.app import Settings, make_app
from tests.fakes.server import Server
from tests.soak.engine_process import EngineProcess
from tests.soak.fleet import (
    ALIASES,
    AT_FIRST,
    ENGINES,
    PROJECTS,
    REQUESTS_PER_S,
    SLOTS,
    Crowd,
    Fleet,
    figures_of,
    held_by,
    make_aliases,
    tenants,
    tokens,
)
from tests.soak.hundreds import control_loop, many, peft_answers, show
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

EVERY_S = 4.0
SETTLED_S = 120.0


@pytest.fixture
def engines(model_folder: Path) -> Iterator[list[EngineProcess]]:
    slots = ("--max-loras", str(SLOTS), "--max-cpu-loras", str(SLOTS))
    engines = [EngineProcess(model_folder, *slots) for _ in range(ENGINES)]
    try:
        for engine in engines:
            engine.start()
        yield engines
    finally:
        for engine in engines:
            engine.kill()


@pytest.fixture
def router(fresh_database: str, settings: Any, tmp_path: Path) -> Iterator[str]:
    # By both names of this machine, so that replicas can be renamed.
    settings.ENGINE_HOSTS = ["127.0.0.1", "localhost"]
    with Server(make_app(Settings(settings.REDIS_URL, tmp_path / "table.json", tmp_path / "spool", 60.0))) as front:
        yield front.url


def settled(fleet: Fleet, copies: int) -> dict[int, set[str]]:
    """Wait until the replicas hold so many copies, each where it is placed, and their engines say so; return them."""
    contents: dict[int, set[str]] = {}

    def is_settled() -> bool:
        rows = list(Replica.objects.usable().select_related("cluster"))
        if len(rows) < len(fleet.replicas) or sum(len(row.loaded) for row in rows) != copies:
            return False
        placed = desired_state(Cluster.objects.get(pk=fleet.cluster.pk)).placed(rows)
        contents.update({pk: held_by(engine) for engine, pk in fleet.replicas.items()})
        return all(contents[row.pk] == set(row.loaded) == set(placed[row.pk]) for row in rows)

    wait_until(is_settled, SETTLED_S, f"{copies} copies on {len(fleet.replicas)} replicas")
    assert max(map(len, contents.values())) <= SLOTS
    return contents


def check_placement(fleet: Fleet) -> dict[str, Any]:
    """Every version has its copies, routers know the holders, and little moves when a replica goes and comes."""
    copies = len(PROJECTS) * (AT_FIRST + 1)
    before = settled(fleet, copies)
    table = routing_table()
    for alias in Alias.objects.select_related("version"):
        name = alias.version.served_name
        holders = set(Replica.objects.filter(loaded__has_key=name).values_list("url", flat=True))
        assert set(table.versions[name].replicas) == holders
        assert len(holders) == (2 if alias.policy.get("quorum") else 1)
    leaving = fleet.engines[-1]
    lost = fleet.replicas[leaving]
    fleet.remove(leaving)
    del fleet.replicas[leaving]
    without = settled(fleet, copies)
    moved_by_loss = sum(len(names - before[pk]) for pk, names in without.items()) - len(before[lost])
    fleet.add(leaving)
    after = settled(fleet, copies)
    moved_by_addition = sum(len(names - after[pk]) for pk, names in without.items())
    # A sixth each; more only where a full replica sends a version on.
    assert moved_by_loss <= copies / 6
    assert moved_by_addition <= copies / 3
    return {
        "copies": copies,
        "on_the_fullest": max(map(len, before.values())),
        "of_the_lost": len(before[lost]),
        "moved_beside_them": moved_by_loss,
        "moved_to_the_added": moved_by_addition,
    }


def test_nobody_gets_an_error_or_another_version_while_replicas_come_and_go(
    soak_s: float,
    engines: list[EngineProcess],
    cluster: Cluster,
    model_folder: Path,
    router: str,
    alice: User,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = many(model_folder, tmp_path, len(PROJECTS) * ALIASES)
    answers = peft_answers(model_folder, folders)
    assert len({answer.text for answer in answers}) > len(answers) / 2, "adapters must differ to prove anything"
    people = tenants(cluster, alice)
    crowd, fleet = Crowd(router, tokens(people)), Fleet(cluster, alice, engines)

    def serve(numbers: range) -> None:
        made = make_aliases(cluster, people, [(number, folders[number]) for number in numbers])
        publish()
        for project, aliases in made.items():
            crowd.expected[project] |= {name: (version, answers[number]) for name, (version, number) in aliases.items()}

    with control_loop() as start_loop:
        serve(range(len(PROJECTS) * AT_FIRST))
        for engine in engines:
            fleet.add(engine)
        start_loop()
        placement = check_placement(fleet)
        crowd.once()
        serve(range(len(PROJECTS) * AT_FIRST, len(folders)))
        fleet.done.clear()
        began, steps = time.monotonic(), 0
        operate = fleet.cycle()
        with crowd.asking():
            while time.monotonic() - began < soak_s or steps % 6:
                next(operate)
                steps += 1
                due = began + steps * EVERY_S
                while (left := due - time.monotonic()) > 0:
                    fleet.check_shares()
                    time.sleep(min(left, 0.5))
            settled_at = time.monotonic()
            wait_until(
                lambda: sum(each.began > settled_at for each in crowd.exchanges) > len(PROJECTS), 60, "more answers"
            )
        seconds = time.monotonic() - began
    loads = AuditEvent.objects.filter(tag=Tag.VERSION_LOADED).count()
    figures = figures_of(crowd.exchanges, fleet, seconds)
    show([placement, figures | {"loads": loads, "least_of_share": min(fleet.least.values())}], capsys)
    assert [each for each in crowd.exchanges if not each.is_right] == []
    over = [each for each in crowd.exchanges if each.status == 429]
    assert {each.project for each in over} == {PROJECTS[-1]}, "its clients send more than its share"
    limited = [each for each in crowd.exchanges if each.project == PROJECTS[-1] and each.began > began]
    assert sum(each.status == 200 for each in limited) <= REQUESTS_PER_S * (seconds + 2)
    failed = [each for each in crowd.exchanges if each.status not in (200, 429)]
    surprising = [
        each for each in failed if not any(each.began <= end and each.ended >= start for start, end in fleet.kills)
    ]
    assert surprising == []
    assert len(failed) <= 4 * len(fleet.kills), "at most what each kill found under way"
    assert fleet.least == dict.fromkeys(PROJECTS, 1.0), "every project has its share at every moment"
    assert min(fleet.done[name] for name in ("killed", "drained", "renamed", "removed", "added")) > 0
