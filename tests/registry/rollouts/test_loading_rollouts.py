"""A rollout whose candidate does not get onto every replica: nobody is sent there, and it says why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest

from adapterhub.accounts.models import User
from adapterhub.audit.models import AuditEvent
from registry.models import AdapterVersion, Alias, Replica, Rollout, RolloutStatus
from registry.serving import replica_calls
from registry.serving.reconciler import reconcile
from tests.builders.fleet import OnDisk, published
from tests.fakes.engine import FakeEngine
from tests.fakes.server import Server, closed_url

Fleet = dict[str, FakeEngine]


@pytest.fixture
def fleet(fresh_database: str, alias: Alias, alice: User) -> Iterator[Fleet]:
    """Address -> engine, four of them, which hold the stable version."""
    with ExitStack() as stack:
        engines = [FakeEngine() for _ in range(4)]
        engine_of = {stack.enter_context(Server(engine.app())).url: engine for engine in engines}
        for url, engine in engine_of.items():
            engine.folders = OnDisk()
            alias.cluster.add_replica(url=url, by=alice.as_actor())
        reconcile()
        yield engine_of
        for engine in engines:
            engine.gate.set()


@pytest.fixture
def rollout(fleet: Fleet, alias: Alias, candidate: AdapterVersion, alice: User) -> Rollout:
    return Rollout.create(alias=alias, candidate=candidate, steps=[{"weight": 50}], reason="try", by=alice.as_actor())


def test_half_of_the_fleet_refuses_it(fleet: Fleet, rollout: Rollout) -> None:
    stable, candidate = rollout.stable.served_name, rollout.candidate.served_name
    refusing = list(fleet)[:2]
    for url in refusing:
        fleet[url].folders[str(rollout.candidate.served_folder())] = 128
    reconcile()
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.FAILED
    table = published()
    assert (table.aliases["eu/compliance"].stable, table.aliases["eu/compliance"].rollout) == (stable, None)
    assert set(table.versions[stable].replicas) == set(fleet)
    reason = AuditEvent.objects.get(tag="rollout:failed").reason
    assert reason.startswith("2 of 4 replicas refused it.")
    assert [url for url in fleet if url in reason] == refusing
    assert reason.count("rank is above the engine's --max-lora-rank") == 2
    reconcile()
    assert [set(engine.adapters) for engine in fleet.values()] == [{stable}] * 4, "unloaded where it was taken"
    assert not published().versions[candidate].replicas


def test_a_slow_replica_is_left_out_until_it_is_back(
    fleet: Fleet, rollout: Rollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its probe hangs: it is as good as gone, and the rollout goes on with the others."""
    monkeypatch.setattr(replica_calls, "LOAD_TIMEOUT_S", 1.0)
    slow, *others = fleet
    fleet[slow].gate.clear()
    reconcile()
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.RUNNING
    for version in (rollout.stable, rollout.candidate):
        assert set(published().versions[version.served_name].replicas) == set(others)
    fleet[slow].gate.set()
    reconcile()
    assert set(published().versions[rollout.candidate.served_name].replicas) == set(fleet)


def test_it_waits_for_a_fleet_that_is_away_but_not_for_ever(rollout: Rollout, settings: Any) -> None:
    for replica in Replica.objects.all():
        Replica.objects.filter(pk=replica.pk).update(url=closed_url())
    reconcile()
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.LOADING
    settings.LOAD_DEADLINE = timedelta(0)
    reconcile()
    rollout.refresh_from_db()
    assert rollout.status == RolloutStatus.FAILED
    assert "No replica answered within" in AuditEvent.objects.get(tag="rollout:failed").reason
