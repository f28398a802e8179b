"""The gpu worker's bridge with a real child process and a tiny real model."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, AdapterVersion, BaseModel
from tests.builders import rows, write_jsonl
from tests.tiny_model import save_base_model
from tests.waiting import wait_until
from training.jobs import work
from training.models import Dataset, RankAnalysis, TrainingRun

FAST = {"rank": 4, "steps": 6, "batch_size": 2, "max_length": 32, "checkpoint_steps": 3, "eval_tokens": 64}


@pytest.fixture
def tiny(fresh_database: str) -> BaseModel:
    model = BaseModel.objects.create(slug="tiny-llama", source="tiny-llama")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    return model


@pytest.fixture
def line_of_work(project: Project, tiny: BaseModel, alice: User) -> Adapter:
    return Adapter.create(project=project, slug="trained", base_model=tiny, by=alice.as_actor())


@pytest.fixture
def long_dataset(project: Project, alice: User, tmp_path: Path) -> Dataset:
    file = write_jsonl(tmp_path / "long.jsonl", rows(120))
    return Dataset.create(project=project, name="long", file=file, filename="long.jsonl", by=alice.as_actor())


def launch(adapter: Adapter, dataset: Dataset, by: User, **changes: object) -> TrainingRun:
    return TrainingRun.launch(adapter=adapter, dataset=dataset, hyperparameters={**FAST, **changes}, by=by.as_actor())


def test_a_run_ends_in_one_version(line_of_work: Adapter, long_dataset: Dataset, alice: User) -> None:
    run = launch(line_of_work, long_dataset, alice)
    for _ in range(3):
        work("trainingrun", str(run.pk))
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")
    version = AdapterVersion.objects.get()
    assert run.version == version
    assert set(version.ranks.values()) == {4}
    assert version.lineage["dataset"] == long_dataset.digest
    assert run.metrics.count() > 0
    assert AuditEvent.objects.filter(tag="training_run:succeeded").count() == 1
    assert verify(run.project)[1] == []


def test_an_analysis_plans_ranks_that_a_run_trains(
    line_of_work: Adapter, long_dataset: Dataset, tiny: BaseModel, alice: User
) -> None:
    analysis = RankAnalysis.launch(
        project=line_of_work.project, base_model=tiny, dataset=long_dataset, by=alice.as_actor(),
        budget={"uniform_rank": 4}, rank_min=2, rank_max=8, quantum=2, samples=16, max_length=32,
    )  # fmt: skip
    work("rankanalysis", str(analysis.pk))
    analysis.refresh_from_db()
    assert (analysis.status, analysis.message) == (JobStatus.SUCCEEDED, "")
    assert analysis.plan["parameters"] <= analysis.plan["budget"]["parameters"]
    other = analysis.reallocate({"uniform_rank": 6})
    assert analysis.plan["parameters"] < other["parameters"] <= other["budget"]["parameters"]

    run = TrainingRun.launch(
        adapter=line_of_work, dataset=long_dataset, rank_analysis=analysis, hyperparameters=FAST, by=alice.as_actor()
    )
    work("trainingrun", str(run.pk))
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")
    assert run.version.ranks == {module["name"]: module["rank"] for module in analysis.plan["modules"]}


def test_cancel_stops_the_child_and_resume_goes_on(line_of_work: Adapter, long_dataset: Dataset, alice: User) -> None:
    run = launch(line_of_work, long_dataset, alice, steps=400)

    def in_a_worker() -> None:
        work("trainingrun", str(run.pk))
        connection.close()

    worker = threading.Thread(target=in_a_worker)
    worker.start()
    wait_until(lambda: run.metrics.count() > 3, 60, "the run logs steps")
    run.cancel(by=alice.as_actor())
    worker.join(30)
    run.refresh_from_db()
    assert run.status == JobStatus.CANCELLED
    stopped_at = run.metrics.last().step
    assert (settings.WORK_DIR / str(run.pk) / "output" / "checkpoints").is_dir()

    TrainingRun.objects.filter(pk=run.pk).update(hyperparameters={**run.hyperparameters, "steps": stopped_at + 3})
    run.resume(by=alice.as_actor())
    work("trainingrun", str(run.pk))
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")


def test_a_child_that_dies_ends_the_run_with_a_reason(
    line_of_work: Adapter, long_dataset: Dataset, alice: User, tiny: BaseModel
) -> None:
    run = launch(line_of_work, long_dataset, alice)
    weights = next(tiny.folder.glob("*.safetensors"))
    kept = weights.read_bytes()
    weights.write_bytes(kept[:100])
    try:
        work("trainingrun", str(run.pk))
    finally:
        weights.write_bytes(kept)
    run.refresh_from_db()
    assert run.status == JobStatus.FAILED
    assert run.reason
    assert run.message
