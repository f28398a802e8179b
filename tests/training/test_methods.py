"""Every method through the gpu worker: a run becomes a version, and a whole model also a stored checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.accounts.models import Project, User
from adapterhub.api.errors import Invalid
from adapterhub.jobs.models import JobStatus
from registry.models import Adapter, BaseModel
from tests.builders import rows, write_jsonl
from tests.tiny_model import save_base_model
from training.jobs import work
from training.models import Dataset, TrainingRun
from training.models.training_run import store

FAST = {"rank": 4, "steps": 6, "batch_size": 2, "max_length": 32, "eval_tokens": 64, "galore_rank": 4}


@pytest.fixture
def line_of_work(project: Project, alice: User) -> Adapter:
    model = BaseModel.objects.create(slug="tiny-llama", source="tiny-llama")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    return Adapter.create(project=project, slug="trained", base_model=model, by=alice.as_actor())


@pytest.fixture
def long_dataset(project: Project, alice: User, tmp_path: Path) -> Dataset:
    file = write_jsonl(tmp_path / "long.jsonl", rows(120))
    return Dataset.create(project=project, name="long", file=file, filename="long.jsonl", by=alice.as_actor())


@pytest.mark.parametrize("method", ["galore", "adalora"])
def test_a_method_ends_in_a_version(
    method: str, line_of_work: Adapter, long_dataset: Dataset, alice: User, tmp_path: Path
) -> None:
    run = TrainingRun.launch(
        adapter=line_of_work, dataset=long_dataset, hyperparameters=FAST, method=method, by=alice.as_actor()
    )
    work("trainingrun", str(run.pk))
    run.refresh_from_db()
    assert (run.status, run.message) == (JobStatus.SUCCEEDED, "")
    assert run.version.method == method
    assert run.version.metrics["loss_served"] > 0
    if method == "galore":
        checkpoint = store().fetch_dir(run.version.metrics["checkpoint"], tmp_path / "checkpoint")
        assert (checkpoint / "model.safetensors").is_file()
        assert 0 <= run.version.metrics["reconstruction_error"] < 1


@pytest.mark.parametrize(
    ("method", "chosen", "said"),
    [
        ("dora", {"init": "eva"}, "init = eva is for lora"),
        ("lora", {"init": "magic"}, "init is 'magic'; choose one of random, eva"),
        ("lora", {"devices": 0}, "devices is 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    method: str, chosen: dict[str, object], said: str, line_of_work: Adapter, long_dataset: Dataset, alice: User
) -> None:
    with pytest.raises(Invalid) as refused:
        TrainingRun.launch(
            adapter=line_of_work, dataset=long_dataset, hyperparameters=chosen, method=method, by=alice.as_actor()
        )
    assert said in refused.value.detail
    assert not TrainingRun.objects.exists()
