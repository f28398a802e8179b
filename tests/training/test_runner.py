"""The gpu worker's bridge with a real child process and a tiny real model."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from django.conf import settings
from django.db import connection
from safetensors.numpy import load_file, save_file

from adapterhub.accounts.models import Project, User
from adapterhub.audit.models import AuditEvent, verify
from adapterhub.core.errors import Invalid
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, AdapterVersion, BaseModel
from tests.builders import rows, write_jsonl
from tests.tiny_model import save_base_model
from tests.waiting import wait_until
from training.models import Compression, Dataset, RankAnalysis, TrainingRun
from training.runs.launch import launch_run
from training.worker.runner import work

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
    return launch_run(adapter=adapter, dataset=dataset, hyperparameters={**FAST, **changes}, by=by.as_actor())


def test_a_run_ends_in_one_version(line_of_work: Adapter, long_dataset: Dataset, alice: User) -> None:
    run = launch(line_of_work, long_dataset, alice)
    for _ in range(3):
        work()
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")
    version = AdapterVersion.objects.get()
    assert run.version == version
    assert set(version.ranks.values()) == {4}
    assert version.lineage["dataset"] == long_dataset.digest
    assert run.metrics.count() > 0
    assert AuditEvent.objects.filter(tag="training_run:succeeded").count() == 1
    assert verify(run.project)[1] == []


def analysed(adapter: Adapter, dataset: Dataset, by: User, **fields: Any) -> RankAnalysis:
    analysis = RankAnalysis.launch(
        project=adapter.project,
        base_model=adapter.base_model,
        dataset=dataset,
        by=by.as_actor(),
        budget={"uniform_rank": 4},
        rank_max=8,
        quantum=2,
        samples=16,
        max_length=32,
        **fields,
    )
    work()
    analysis.refresh_from_db()
    assert (analysis.status, analysis.message) == (JobStatus.SUCCEEDED, "")
    return analysis


def ranks_of(plan: dict[str, Any]) -> dict[str, int]:
    return {module["name"]: module["rank"] for module in plan["modules"] if module["rank"]}


@pytest.mark.slow
def test_an_analysis_plans_ranks_and_start_values_that_a_run_trains(
    line_of_work: Adapter, long_dataset: Dataset, alice: User
) -> None:
    analysis = analysed(line_of_work, long_dataset, alice, settings={"probe_steps": 2, "probe_rates": [0.01, 0.02]})
    assert analysis.plan["parameters"] <= analysis.plan["budget"]["parameters"]
    assert analysis.plan["learning_rate"] == min(analysis.plan["probes"], key=lambda probe: probe["loss"])["rate"]
    values = load_file(analysis.start_values_file())
    assert AuditEvent.objects.get(tag="rank_analysis:succeeded").evidence["start_values"] in str(
        analysis.start_values_file()
    )

    other = analysis.reallocate({"uniform_rank": 2})
    assert other["parameters"] <= other["budget"]["parameters"] < analysis.plan["parameters"]
    # So slow that A stays as it began.
    run = launch_run(
        adapter=line_of_work,
        dataset=long_dataset,
        rank_analysis=analysis,
        budget={"uniform_rank": 2},
        hyperparameters={**FAST, "learning_rate": 1e-7},
        by=alice.as_actor(),
    )
    work()
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")
    assert run.version.ranks == ranks_of(other) != ranks_of(analysis.plan)
    assert run.version.lineage["start_values"] == analysis.plan["start_values"]
    trained = load_file(run.version.served_folder() / "adapter_model.safetensors")
    for name, rank in run.version.ranks.items():
        trained_a = trained[f"base_model.model.{name}.lora_A.weight"]
        assert np.allclose(trained_a, values[name][:rank], atol=1e-5), name


@pytest.mark.slow
def test_the_seed_preset_still_plans(line_of_work: Adapter, long_dataset: Dataset, alice: User) -> None:
    analysis = analysed(line_of_work, long_dataset, alice, preset="seed", rank_min=2)
    assert analysis.plan["divergence_used"]
    assert analysis.plan["start_values"] is None
    assert analysis.plan["settings"] == analysis.parts
    assert analysis.reallocate({"uniform_rank": 6})["parameters"] > analysis.plan["parameters"]


@pytest.mark.slow
def test_a_version_is_compressed_to_a_new_one(line_of_work: Adapter, long_dataset: Dataset, alice: User) -> None:
    launch(line_of_work, long_dataset, alice, learning_rate=0.02)
    work()
    source = AdapterVersion.objects.get()
    job = Compression.launch(source, {"uniform_rank": 2}, by=alice.as_actor())
    assert job.dataset == long_dataset
    work()
    job.refresh_from_db()
    assert (job.status, job.message) == (JobStatus.SUCCEEDED, "")
    version = job.version
    assert (version.number, version.adapter) == (2, line_of_work)
    assert version.parameters <= source.parameters / 2
    assert version.lineage["compressed_from"]["digest"] == source.digest
    assert version.metrics["loss_before"] == pytest.approx(source.metrics["loss_after"], rel=0.05)
    assert version.metrics["loss_after"] > 0
    assert 0 < version.metrics["energy_kept"] < 1
    assert version.metrics["parameters_before"] == source.parameters
    tags = list(AuditEvent.objects.filter(tag__startswith="compression:").order_by("pk").values_list("tag", flat=True))
    assert tags == ["compression:requested", "compression:succeeded"]

    again = Compression.launch(source, {"uniform_rank": 2}, by=alice.as_actor())
    work()
    again.refresh_from_db()
    assert (again.status, again.reason) == (JobStatus.FAILED, "bad_input")
    assert "already been published as trained v2" in again.message
    assert AdapterVersion.objects.count() == 2


@pytest.mark.slow
def test_a_version_without_a_dataset_is_compressed_without_a_loss(
    line_of_work: Adapter, tiny: BaseModel, alice: User, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    shapes = tiny.linear_shapes()
    tensors = {}
    for layer in range(tiny.layers):
        name = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        out, width = shapes["up_proj"]
        tensors[f"{name}.lora_A.weight"] = np.random.default_rng(layer).normal(size=(4, width)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = np.random.default_rng(layer).normal(size=(out, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["up_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    source = AdapterVersion.publish(line_of_work, folder, method="upload", by=alice.as_actor())
    job = Compression.launch(source, {"uniform_rank": 3}, by=alice.as_actor())
    work()
    job.refresh_from_db()
    assert (job.status, job.message, job.loss_after) == (JobStatus.SUCCEEDED, "", None)
    assert sum(job.version.ranks.values()) <= 6


@pytest.mark.slow
def test_cancel_stops_the_child_and_resume_goes_on(line_of_work: Adapter, long_dataset: Dataset, alice: User) -> None:
    run = launch(line_of_work, long_dataset, alice, steps=400)

    def in_a_worker() -> None:
        work()
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
    work()
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")


@pytest.mark.slow
def test_a_child_that_dies_ends_the_run_with_a_reason(
    line_of_work: Adapter, long_dataset: Dataset, alice: User, tiny: BaseModel
) -> None:
    run = launch(line_of_work, long_dataset, alice)
    weights = next(tiny.folder.glob("*.safetensors"))
    intact = weights.read_bytes()
    weights.write_bytes(intact[:100])
    try:
        work()
    finally:
        weights.write_bytes(intact)
    run.refresh_from_db()
    assert run.status == JobStatus.FAILED
    assert run.reason
    assert run.message


@pytest.mark.slow
def test_prompts_are_answered_at_each_checkpoint_and_kept_once(
    line_of_work: Adapter, long_dataset: Dataset, alice: User
) -> None:
    run = launch_run(
        adapter=line_of_work,
        dataset=long_dataset,
        hyperparameters=FAST,
        prompts={"greeting": "the quick"},
        by=alice.as_actor(),
    )
    work()
    stored = list(run.answers.values_list("step", "name"))
    assert stored == [(0, "greeting"), (3, "greeting"), (6, "greeting")]
    run.refresh_from_db()

    assert run.version.lineage["prompts"] == ["greeting"]


@pytest.mark.parametrize(
    ("prompts", "fragment"),
    [
        ({"": "text"}, "name"),
        ({"empty": " "}, "The prompt empty"),
        ({f"p{number}": "text" for number in range(9)}, "at most 8"),
    ],
)
def test_bad_prompts_are_named(
    prompts: dict[str, str], fragment: str, line_of_work: Adapter, long_dataset: Dataset, alice: User
) -> None:
    with pytest.raises(Invalid, match=fragment) as caught:
        launch_run(adapter=line_of_work, dataset=long_dataset, prompts=prompts, by=alice.as_actor())
    assert caught.value.field == "prompts"
    assert not TrainingRun.objects.exists()


def test_a_run_in_shards_answers_no_prompts(line_of_work: Adapter, long_dataset: Dataset, alice: User) -> None:
    with pytest.raises(Invalid, match="sharded"):
        launch_run(
            adapter=line_of_work,
            dataset=long_dataset,
            prompts={"one": "text"},
            hyperparameters={**FAST, "devices": 2, "sharded": 1},
            by=alice.as_actor(),
        )
