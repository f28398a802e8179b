"""Runs on a tiny Llama, and the workers that carry them out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub.accounts.models import Project, User
from registry.models import Adapter, BaseModel
from tests.builders import rows, write_jsonl
from tests.builders.workers import Started
from tests.tiny_model import save_base_model
from training.models import Dataset, TrainingRun
from training.runs.launch import launch_run

CHOSEN = {"rank": 4, "steps": 60, "batch_size": 2, "max_length": 32, "checkpoint_steps": 7, "eval_tokens": 64}


@pytest.fixture
def launch(project: Project, alice: User, tmp_path: Path) -> Callable[..., TrainingRun]:
    model = BaseModel.objects.create(slug="tiny-llama", source="tiny-llama")
    if not model.folder.exists():
        save_base_model(model.folder)
    model.inspect()
    file = write_jsonl(tmp_path / "long.jsonl", rows(120))
    dataset = Dataset.create(project=project, name="long", file=file, filename="long.jsonl", by=alice.as_actor())

    def make(name: str, **chosen: Any) -> TrainingRun:
        adapter = Adapter.create(project=project, slug=name, base_model=model, by=alice.as_actor())
        return launch_run(adapter=adapter, dataset=dataset, hyperparameters={**CHOSEN, **chosen}, by=alice.as_actor())

    return make


@pytest.fixture
def started(fresh_database: str) -> Iterator[Started]:
    children: Started = []
    yield children
    for child in children:
        child.kill()
        child.wait()
