"""A control loop that is killed at each of its calls to replicas: the next one comes to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent, verify
from registry.models import AdapterVersion, Alias, Replica
from registry.serving.reconciler import reconcile
from tests.builders.fleet import OnDisk, published
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server
from tests.waiting import wait_until

# Two replicas are each asked for models and version, then to load, to answer the probe and to unload.
CALLS = 10


class Deadly:
    """Counts the calls to all replicas, and kills who makes the one that is chosen, before it is answered."""

    def __init__(self) -> None:
        self.chosen, self.seen = 0, 0
        self.victim: Future[int] = Future()

    def around(self, app: ASGIApp) -> ASGIApp:
        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                self.seen += 1
                if self.seen == self.chosen:
                    os.kill(self.victim.result(10), signal.SIGKILL)
            await app(scope, receive, send)

        return counted


@pytest.fixture
def deadly() -> Deadly:
    return Deadly()


@pytest.fixture
def engines(fresh_database: str, alias: Alias, alice: User, deadly: Deadly) -> Iterator[list[FakeEngine]]:
    pair = [FakeEngine(), FakeEngine()]
    with Server(deadly.around(pair[0].app())) as first, Server(deadly.around(pair[1].app())) as second:
        for engine, server in zip(pair, (first, second), strict=True):
            engine.folders = OnDisk()
            alias.cluster.add_replica(url=server.url, by=alice.as_actor())
        yield pair


@pytest.fixture
def loops(fresh_database: str, settings: Any) -> Iterator[subprocess.Popen[str]]:
    settings.ROLLBACK_WINDOW = timedelta(0)
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.registry.serving.forked_loop", fresh_database],
        env=os.environ | {"PYTHONPATH": path, "ADAPTERHUB_ROLLBACK_WINDOW_S": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as forker:
        yield forker
        assert forker.stdin
        forker.stdin.close()


def killed_at(call: int, loops: subprocess.Popen[str], deadly: Deadly) -> None:
    assert loops.stdin
    assert loops.stdout
    deadly.chosen, deadly.seen, deadly.victim = call, 0, Future()
    loops.stdin.write("\n")
    loops.stdin.flush()
    deadly.victim.set_result(int(loops.stdout.readline()))
    assert loops.stdout.readline() == "ended\n"
    assert deadly.seen >= call, "it came that far"


@pytest.mark.slow
def test_the_next_loop_comes_to_the_same_end(
    engines: list[FakeEngine],
    deadly: Deadly,
    loops: subprocess.Popen[str],
    alias: Alias,
    candidate: AdapterVersion,
    alice: User,
) -> None:
    reconcile()
    versions = [candidate, alias.version]
    for call in range(1, CALLS + 1):
        new, old = versions[(call - 1) % 2], alias.version
        alias.move(new, expected=old, reason="newer", by=alice.as_actor())
        killed_at(call, loops, deadly)
        deadly.chosen = 0
        wait_until(lambda new=new: is_served_alone(engines, new), 30, "the end that an undisturbed loop comes to")
    # What was loaded is written down once, also when the loop died between the two.
    events = AuditEvent.objects.filter(tag="replica:version_loaded")
    assert events.count() == 2 * (CALLS + 1)
    assert not AuditEvent.objects.filter(tag="replica:load_refused").exists()
    assert verify(alias.project)[1] == []


def is_served_alone(engines: list[FakeEngine], version: AdapterVersion) -> bool:
    """A look returns at once while Postgres has not noticed that the killed loop's connection is gone."""
    reconcile()
    name = version.served_name
    routed = published().versions[name].replicas
    return (
        len(routed) == 2
        and all(set(engine.adapters) == {name} for engine in engines)
        and all(set(replica.loaded) == {name} for replica in Replica.objects.all())
    )
