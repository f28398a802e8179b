"""A run begins where its devices and memory fit, projects take turns, and every worker reports its own host."""

from __future__ import annotations

from typing import Any

import pytest
from django.utils.timezone import now

from adapterhub.accounts.models import Membership, Project, User
from registry.models import Adapter
from tests.builders.people import member
from tests.waiting import wait_until
from training import hardware
from training.models import Dataset, Device, TrainingRun
from training.planning import preflight
from training.runs.launch import launch_run
from training.worker import host_reports, queue, runner

GB = 10**9


def gpus(count: int, memory_bytes: int = 80 * GB) -> list[hardware.DetectedDevice]:
    return [
        hardware.DetectedDevice(place, "cuda", "H100", memory_bytes, memory_bytes, 10**13) for place in range(count)
    ]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the devices of this host."""

    def has(count: int, memory_bytes: int = 80 * GB) -> None:
        monkeypatch.setattr(hardware, "detect", lambda folder: gpus(count, memory_bytes))

    return has


def queued(adapter: Adapter, dataset: Dataset, by: User, **hyperparameters: Any) -> TrainingRun:
    return launch_run(adapter=adapter, dataset=dataset, by=by.as_actor(), hyperparameters=hyperparameters, anyway=True)


def test_a_run_for_eight_gpus_waits_for_a_host_that_has_them(
    dataset: Dataset, adapter: Adapter, alice: User, here: Any
) -> None:
    large = queued(adapter, dataset, alice, devices=8)
    small = queued(adapter, dataset, alice)
    here(1)
    assert queue.claim() == small, "a worker with one takes the other job instead"
    assert queue.claim() is None
    assert "It takes 8 devices" not in preflight.queue(large)["text"], "no host is known yet"
    Device.report("one", gpus(1))
    assert "It takes 8 devices of one host, and the largest has 1" in preflight.queue(large)["text"]
    here(8)
    assert queue.claim() == large


def test_a_run_waits_for_memory_that_some_host_has_and_begins_anyway_where_none_has(
    dataset: Dataset, adapter: Adapter, alice: User, here: Any
) -> None:
    run = queued(adapter, dataset, alice, batch_size=1024, max_length=100_000)
    here(1, 1 * GB)
    Device.report("big", gpus(1, 10**16))
    assert queue.claim() is None
    Device.objects.all().delete()
    assert queue.claim() == run, "somebody queued it anyway, and no host is larger"


def test_projects_take_turns(project: Project, dataset: Dataset, adapter: Adapter, alice: User, here: Any) -> None:
    here(1)
    many = [queued(adapter, dataset, alice) for _ in range(3)]
    other = Project.objects.create(slug="second", name="Second")
    erna = member("erna", other, Membership.Role.ADMIN)
    theirs = Adapter.create(project=other, slug="dora", base_model=adapter.base_model, by=erna.as_actor())
    data = Dataset.objects.get(pk=dataset.pk)
    data.pk, data.project, data.digest = None, other, "f" * 64
    data.save(force_insert=True)
    single = TrainingRun(project=other, adapter=theirs, base_model=adapter.base_model, dataset=data, method="lora")
    single.hyperparameters = many[0].hyperparameters
    single.save(force_insert=True)
    assert queue.claim() == many[0]
    TrainingRun.objects.filter(pk=many[0].pk).update(status="cancelled", lease_expires_at=None, finished_at=now())
    assert queue.claim() == single, "the other project's turn, although its job is the youngest"
    TrainingRun.objects.filter(pk=single.pk).update(status="cancelled", lease_expires_at=None, finished_at=now())
    assert queue.claim() == many[1]


def test_a_host_without_a_gpu_trains_with_processes_in_its_one_memory(
    dataset: Dataset, adapter: Adapter, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = queued(adapter, dataset, alice, devices=2)
    processor = hardware.DetectedDevice(0, "cpu", "2 CPU cores", 16 * GB, 16 * GB, 10**13)
    monkeypatch.setattr(hardware, "detect", lambda folder: [processor])
    assert queue.claim() == run


def test_a_worker_reports_its_own_host_whether_it_is_idle_or_busy(
    fresh_database: str, here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here(2)
    monkeypatch.setattr(runner, "REPORT_S", 0.05)
    reports = host_reports.HostReports()
    reports.start()
    try:
        wait_until(lambda: Device.objects.count() == 2, what="the first report")
        Device.objects.all().delete()
        wait_until(lambda: Device.objects.count() == 2, what="the next report")
    finally:
        reports.end()
